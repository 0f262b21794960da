"""The witness of a checkpoint that was never in memory here: what a reference that is read from its files answers.

    compressed-tensors, bitsandbytes   the checkpoint in transformers, its weights expanded by its own package
    gptq, awq                          a plain model whose Linears hold what decoders of ours make of the packed weights
    gguf                               the file's weights, dequantized by the package `gguf`

So a proof by it says that the serving engine reads the files as the reference does. Of whether they are a good form of
the baseline it says nothing: that is what evals are for. Where no reference can be made, that is written down instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantize.errors import EngineLost, Interrupted, QuantizeError, SourceError
from quantize.proof.witness import record, record_nothing
from quantize.sources import lacking

__all__ = ["refer"]

_PLAIN = ("gptq", "awq")
_UNREADABLE = "Report it with the model's name: transformers has no reader for this architecture's GGUF files."


def refer(checkpoint: Path, baseline: Path, out: Path, device: str) -> None:
    """Write the witness of `checkpoint` into `out`, by a reference, or why there is none.

    Raises SourceError where the checkpoint lacks weights that the baseline has, EngineLost where memory does not do.
    """
    try:
        model = _reference(checkpoint, baseline, device)
    except (Interrupted, EngineLost):
        raise
    except QuantizeError as error:
        gguf = (checkpoint / "model.gguf").is_file()
        missing = None if gguf else lacking(checkpoint, baseline)
        if missing is not None:
            raise SourceError(
                f"the checkpoint has no weights for {missing}, which the baseline has.",
                where=str(checkpoint),
                fix="It is another model, or a damaged one.",
            ) from error
        record_nothing(out, str(error).partition("\n")[0])
        return
    record(model, tokenizer_dir=baseline, out=out, checkpoint=checkpoint, referred=True)


def _reference(checkpoint: Path, baseline: Path, device: str) -> Any:
    from transformers import AutoConfig

    from quantize.engines import Transformers
    from quantize.gguf_file import read_gguf
    from quantize.gguf_model import dequantized

    gguf = checkpoint / "model.gguf"
    if gguf.is_file():
        config = AutoConfig.from_pretrained(baseline)
        return dequantized(read_gguf(gguf), config=config, fix=_UNREADABLE).eval()
    settings = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    if settings.get("quant_method") in _PLAIN:
        return _plain(checkpoint, baseline, device)
    model = Transformers().open(checkpoint, device).model
    _expand(model)
    return model


def _expand(model: Any) -> None:
    """compressed-tensors leaves its Linears packed until the first pass; fingerprints are of the expanded weights."""
    import torch

    with torch.inference_mode():
        model(torch.tensor([[0]], device=model.device), use_cache=False)


def _plain(checkpoint: Path, baseline: Path, device: str) -> Any:
    """The model that the checkpoint's config describes, its packed Linears dequantized by decoders of ours."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quantize import fingerprint

    config = AutoConfig.from_pretrained(checkpoint)
    saved = getattr(AutoConfig.from_pretrained(baseline), "dtype", None) or torch.float32
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if device == "cpu" else saved).eval()
    tensors = fingerprint.Tensors(checkpoint)
    settings = {**fingerprint.settings(checkpoint), "kind": "plain"}
    lost = []
    with torch.inference_mode():
        for name, parameter in model.named_parameters():  # a tied head is not among them
            module, _, leaf = name.rpartition(".")
            found = tensors.get(name)
            if found is None and leaf == "weight":
                found = fingerprint.weight(tensors, module, settings, "float32")
            if found is not None and found.shape == parameter.shape:
                parameter.copy_(found)
            else:
                lost.append(name)
    if lost:
        raise QuantizeError(
            f"{len(lost)} weights are not in the checkpoint as transformers needs them, {lost[0]} first.",
            where=str(checkpoint),
        )
    return model.to(device)
