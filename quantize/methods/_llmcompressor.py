"""What the llm-compressor methods share: load, `oneshot`, settle the numbers, witness, save.

Arithmetic runs in float32 on a CPU (bfloat16 is several times slower there) and in the checkpoint's dtype on a GPU.
What is saved has the checkpoint's dtype either way. So the numbers are settled before anybody looks at them: scales and
everything unquantized are rounded to the checkpoint's dtype while the tensors stay in the dtype of the arithmetic. The
witness then answers with exactly the numbers that are written, and the integers on disk are those it answered with.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from quantize.experts import Routed, keep_names, linear_experts
from quantize.handed import QuantizeJob
from quantize.loading import auto_class, outside_language
from quantize.methods._causal import causal_tracing, must_be_causal
from quantize.methods._covered import describe, resolve
from quantize.methods._experts import check, settle
from quantize.methods._modules import linears
from quantize.methods._text_files import copy_text_files
from quantize.patterns import hits
from quantize.scheme import Group, Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["FORMAT", "LIBRARIES", "ROTATED", "run", "settings"]

FORMAT: Literal["compressed-tensors"] = "compressed-tensors"
#: The same container, where a reader has to rotate activations besides: not every reader of the container does.
ROTATED: Literal["compressed-tensors+rotations"] = "compressed-tensors+rotations"
LIBRARIES = ("compressed-tensors", "llmcompressor", "torch", "transformers")

#: Scales of whole tensors (NVFP4) stay in float32, as their kernels have them.
_WIDE = "_global_scale"


def settings(job: QuantizeJob) -> dict[str, Any]:
    """What every modifier that rounds is told: which modules get which numbers, and which are left alone."""
    from compressed_tensors.quantization import QuantizationArgs

    groups = job.scheme.groups or (Group("group_0", ("Linear",), job.scheme),)
    found: dict[str, Any] = {
        "config_groups": {group.name: _of_preset(group.scheme, list(group.targets)) for group in groups},
        "ignore": list(job.ignore),
    }
    if job.scheme.kv_cache is not None:
        found["kv_cache_scheme"] = QuantizationArgs(
            num_bits=8, type="float", strategy="tensor", dynamic=False, symmetric=True
        )
    return found


def _of_preset(scheme: Scheme, targets: list[str]) -> Any:
    """The preset of the scheme's name for `targets`.

    Integers of 4 bits are always packed: beside rounded activations the library would store each in a byte, which takes
    twice the memory and which vLLM's kernels for them do not read.
    """
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import preset_name_to_scheme

    found = preset_name_to_scheme(scheme.name, targets)
    found.weights.group_size = scheme.group_size
    if scheme.weight_type == "int" and scheme.weight_bits < 8:
        found.format = CompressionFormat.pack_quantized
    return found


def _loader(job: QuantizeJob) -> torch.utils.data.DataLoader[Any] | None:
    """The job's token rows, one a batch, in their order; None where it has none."""
    import torch

    if job.tokens is None:
        return None
    rows: Any = [{"input_ids": row.to(torch.int64)} for row in job.tokens]
    return torch.utils.data.DataLoader(rows, batch_size=1, shuffle=False)


def run(job: QuantizeJob, modifiers: Callable[[QuantizeJob], list[Any]]) -> None:
    """Quantize `job.checkpoint` into `job.out` with the modifiers that a job is given.

    Raises QuantizeError, before anything is calibrated, where the job's patterns and the model's modules do not agree.
    """
    import torch
    from compressed_tensors.offload import dispatch_model, remove_dispatch
    from llmcompressor import oneshot
    from transformers import AutoConfig

    torch.manual_seed(job.seed)
    kind = auto_class(job.checkpoint)
    saved_dtype = AutoConfig.from_pretrained(job.checkpoint).dtype or torch.float32
    on_cpu = job.device == "cpu"
    job.progress("loading", 0, None)
    with linear_experts(job.checkpoint):
        model = kind.from_pretrained(job.checkpoint, dtype=torch.float32 if on_cpu else saved_dtype)
    keep_names(model)
    job = settle(resolve(job, model), model)
    job.progress(f"quantizing: {describe(job, model)}", 0, None)
    with Routed(model) as routed, causal_tracing(), must_be_causal(model):
        oneshot(
            model=model,
            recipe=modifiers(job),
            dataset=_loader(job),
            num_calibration_samples=None if job.tokens is None else len(job.tokens),
            shuffle_calibration_samples=False,
            moe_calibrate_all_experts=job.uncovered == "calibrate_all",
            **_processor(job, model),
        )
    check(job, routed)
    # llm-compressor leaves the weights where they were loaded and brings them to the device layer by layer.
    remove_dispatch(model)
    if not on_cpu:
        dispatch_model(model)
    model.eval()
    _widen(model, torch.float32 if on_cpu else saved_dtype)
    _settle(model, saved_dtype)
    job.witness(model)
    job.progress("saving", 0, None)
    _save(model, saved_dtype, job)


def _processor(job: QuantizeJob, model: Any) -> dict[str, Any]:
    """The tokenizer as what prepares inputs, where the library would look for one that prepares images."""
    from transformers import AutoTokenizer

    if job.tokens is None or not outside_language(model)[0]:
        return {}
    return {"processor": AutoTokenizer.from_pretrained(job.checkpoint, local_files_only=True)}


def _widen(model: Any, dtype: torch.dtype) -> None:
    """Bring back to the dtype of the arithmetic, in place, what a library narrowed (AutoRound tunes in bfloat16)."""
    import torch

    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.dtype in {torch.bfloat16, torch.float16}:
            tensor.data = tensor.data.to(dtype)


def _settle(model: Any, dtype: torch.dtype) -> None:
    """Round to `dtype` what is saved in it, in place, without leaving the dtype of the arithmetic.

    The weights of quantized modules are left alone: they are saved as integers, which must come from the weights as the
    method left them and not from rounded ones. Buffers that are not saved (rotary frequencies) keep their precision.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        integers = leaf == "weight" and hasattr(model.get_submodule(owner), "quantization_scheme")
        if tensor.is_floating_point() and not integers and not leaf.endswith(_WIDE):
            tensor.data = tensor.data.to(dtype).to(tensor.dtype)


def _save(model: Any, dtype: torch.dtype, job: QuantizeJob) -> None:
    """Compress in the dtype of the arithmetic, cast what is left to `dtype`, write the checkpoint."""
    from compressed_tensors import ModelCompressor
    from transformers import GenerationConfig

    arithmetic = model.dtype
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.dtype == arithmetic and not name.endswith(_WIDE):
            tensor.data = tensor.data.to(dtype)
    # A model that takes more than text has a config in it for each part, and servers read that of the language part.
    for config in (model.config, *(getattr(model.config, part, None) for part in model.config.sub_configs)):
        if config is not None:
            config.dtype = dtype
    # transformers refuses to save generation settings that contradict each other; the file is copied as it is instead.
    model.generation_config = GenerationConfig()
    with warnings.catch_warnings():
        # compressed-tensors notes each module's device before it saves, and transformers takes "cpu" for offloading
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(job.out, save_compressed=True)
    _name_ignored(model, job)
    copy_text_files(job.checkpoint, job.out)


def _name_ignored(model: Any, job: QuantizeJob) -> None:
    """Let the config of a model that is more than language name what was left alone by the modules' own names too.

    Its tensors are saved under older names (`visual.blocks`, of the module `model.visual.blocks`). The library writes
    the ignored modules by those, and transformers then looks for packed weights in all of them.
    """
    if not outside_language(model)[0]:
        return
    path = job.out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = config["quantization_config"]
    found = hits(linears(model), (), job.ignore).ignored
    settings["ignore"] = list(dict.fromkeys([*settings["ignore"], *sorted(found)]))
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
