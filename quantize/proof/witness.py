"""The witness: what the quantized model answered while it was in memory, before it was saved.

It is taken where the model is, which may be another environment: this module needs torch, transformers and safetensors
and nothing else (compressed-tensors or bitsandbytes only for models that are made of them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.proof.prompts import POSITIONS, PROMPTS, TOP, WITNESS_FILE

if TYPE_CHECKING:
    import torch

__all__ = ["Witness", "nothing_recorded", "read", "record", "record_nothing"]

_FINGERPRINT = "fingerprint."
#: Instead of the witness, where no reference could be made.
_NOTHING = "nothing.json"


@dataclass(frozen=True, slots=True)
class Witness:
    """A recorded witness: `prompts` are ids int64 (tokens) each; see `record` for the tensors.

    `dtype` is that of the arithmetic; `rounded` says whether the format itself rounds activations; `referred` that no
    model was in memory before the files were there, so that they were read by a reference.
    """

    prompts: list[torch.Tensor]
    top_ids: torch.Tensor
    top_logits: torch.Tensor
    rest: torch.Tensor
    fingerprints: dict[str, torch.Tensor]
    layouts: dict[str, dict[str, Any]]
    dtype: str
    rounded: bool
    vocabulary: int
    referred: bool = False

    @property
    def ggml_types(self) -> set[str]:
        """The types of a GGUF file's matrices; empty for other formats."""
        return {layout["type"] for layout in self.layouts.values() if layout["kind"] == "gguf"}


def record(
    model: Any, tokenizer_dir: Path, out: Path, checkpoint: Path | None = None, *, referred: bool = False
) -> None:
    """Write what `model` (a transformers causal LM) answers to the prompts into `out`/witness.safetensors.

    Tensors: `ids` int64 (all prompts, end to end) and `lengths` int64 (prompts); `top_ids` int64 and `top_logits`
    float32 (positions, kept); `rest` float64 (positions), the log of the summed exponentials of all other logits; and
    `fingerprint.<module>` float32. Raw logits and not log-probabilities, because normalising in float32 would be the
    largest error of the comparison.

    `checkpoint` is where the artifact is written, by default beside `out`. If it already holds `model.gguf`, `model` is
    a reference that was read from it, and the fingerprints are of that file's tensors.
    """
    import torch
    from safetensors.torch import save_file

    from quantize import fingerprint

    # before anything is computed: there are kernels that repack a weight in place when it is first used
    written = (checkpoint or out.parent / "checkpoint") / "model.gguf"
    if written.is_file():
        fingerprints, layouts = fingerprint.of_gguf(written)
    else:
        fingerprints, layouts = fingerprint.in_memory(model)
    prompts = _encode(tokenizer_dir)
    device = model.get_input_embeddings().weight.device
    rows = []
    with torch.inference_mode():
        for ids in prompts:
            answer = model(input_ids=torch.tensor([ids], device=device), use_cache=False)
            rows.append(answer.logits[0, -POSITIONS:].float().cpu())
    logits = torch.cat(rows)
    top = logits.topk(min(TOP, logits.shape[1])).indices
    tensors = {
        "ids": torch.tensor([token for ids in prompts for token in ids]),
        "lengths": torch.tensor([len(ids) for ids in prompts]),
        "top_ids": top,
        "top_logits": logits.gather(1, top).contiguous(),
        "rest": logits.double().scatter(1, top, -torch.inf).logsumexp(1),
    }
    tensors |= {f"{_FINGERPRINT}{name}": projection for name, projection in fingerprints.items()}
    metadata = {
        "version": 2,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rounded": any(_rounds_activations(layout) for layout in layouts.values()) or _rounds_keys(model),
        "vocabulary": logits.shape[1],
        "layouts": layouts,
        **({"referred": True} if referred else {}),
    }
    # One entry, because safetensors writes several in an order of its own: the same model gives the same bytes.
    save_file(tensors, out / WITNESS_FILE, metadata={"witness": json.dumps(metadata, sort_keys=True)})


def read(folder: Path) -> Witness:
    """The witness that `record` wrote into `folder`."""
    from safetensors import safe_open

    with safe_open(folder / WITNESS_FILE, "pt") as file:
        metadata = json.loads(file.metadata()["witness"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Witness(
        prompts=list(tensors["ids"].split(tensors["lengths"].tolist())),
        top_ids=tensors["top_ids"],
        top_logits=tensors["top_logits"],
        rest=tensors["rest"],
        fingerprints={
            name.removeprefix(_FINGERPRINT): tensor for name, tensor in tensors.items() if name.startswith(_FINGERPRINT)
        },
        layouts=metadata["layouts"],
        dtype=metadata["dtype"],
        rounded=metadata["rounded"],
        vocabulary=metadata["vocabulary"],
        referred=metadata.get("referred", False),
    )


def record_nothing(out: Path, why: str) -> None:
    """Write down that there is no witness, and why."""
    (out / _NOTHING).write_text(json.dumps({"why": why}), encoding="utf-8")


def nothing_recorded(folder: Path) -> str | None:
    """Why `folder` has no witness; None where it has one."""
    if (folder / WITNESS_FILE).is_file():
        return None
    path = folder / _NOTHING
    return str(json.loads(path.read_text(encoding="utf-8"))["why"]) if path.is_file() else "none was kept"


def _encode(tokenizer_dir: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return [list(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def _rounds_keys(model: Any) -> bool:
    """Whether attention rounds its keys and values (compressed-tensors)."""
    return any(hasattr(module, "k_scale") and hasattr(module, "v_scale") for module in model.modules())


def _rounds_activations(layout: dict[str, Any]) -> bool:
    """Whether a module of this layout rounds what it is given, in whatever engine."""
    if layout["kind"] == "bitsandbytes":
        return bool(layout["bits"] == 8)
    return bool(layout.get("scheme", {}).get("input_activations"))
