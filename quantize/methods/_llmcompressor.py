"""What the llm-compressor methods share: load, `oneshot`, settle the numbers, witness, save.

Arithmetic runs in float32 on a CPU (bfloat16 is several times slower there) and in the checkpoint's dtype on a GPU.
What is saved has the checkpoint's dtype either way. So the numbers are settled before anybody looks at them: scales and
everything unquantized are rounded to the checkpoint's dtype while the tensors stay in the dtype of the arithmetic. The
witness then answers with exactly the numbers that are written, and the integers on disk are those it answered with.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from quantize.handed import QuantizeJob
from quantize.methods._text_files import copy_text_files
from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["FORMAT", "LIBRARIES", "calibration_loader", "config_groups", "run"]

FORMAT: Literal["compressed-tensors"] = "compressed-tensors"
LIBRARIES = ("compressed-tensors", "llmcompressor", "torch", "transformers")


def config_groups(scheme: Scheme) -> dict[str, Any]:
    """`scheme` for all Linear modules, as a compressed-tensors config group; activations are the preset's."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

    weights = QuantizationArgs(
        num_bits=scheme.weight_bits,
        type=scheme.weight_type,
        symmetric=scheme.symmetric,
        strategy=scheme.strategy,
        group_size=scheme.group_size,
        dynamic=False,
    )
    activations = preset_name_to_scheme(scheme.name, ["Linear"]).input_activations
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)}


def calibration_loader(job: QuantizeJob) -> torch.utils.data.DataLoader[Any]:
    """The job's token rows, one a batch, in their order."""
    import torch

    if job.tokens is None:
        raise ValueError("a calibrated method was given no tokens")
    rows: Any = [{"input_ids": row.to(torch.int64)} for row in job.tokens]
    return torch.utils.data.DataLoader(rows, batch_size=1, shuffle=False)


def run(job: QuantizeJob, modifiers: list[Any], loader: torch.utils.data.DataLoader[Any] | None) -> None:
    """Quantize `job.checkpoint` with `modifiers` into `job.out`."""
    import torch
    from compressed_tensors.offload import dispatch_model, remove_dispatch
    from llmcompressor import oneshot
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(job.seed)
    saved_dtype = AutoConfig.from_pretrained(job.checkpoint).dtype or torch.float32
    on_cpu = job.device == "cpu"
    job.progress("loading", 0, None)
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32 if on_cpu else saved_dtype)
    job.progress("quantizing", 0, None)
    oneshot(
        model=model,
        recipe=modifiers,
        dataset=loader,
        num_calibration_samples=None if job.tokens is None else len(job.tokens),
        shuffle_calibration_samples=False,
    )
    # llm-compressor leaves the weights where they were loaded and brings them to the device layer by layer.
    remove_dispatch(model)
    if not on_cpu:
        dispatch_model(model)
    model.eval()
    _settle(model, saved_dtype)
    job.witness(model)
    job.progress("saving", 0, None)
    _save(model, saved_dtype, job)


def _settle(model: Any, dtype: torch.dtype) -> None:
    """Round to `dtype` what is saved in it, in place, without leaving the dtype of the arithmetic.

    The weights of quantized modules are left alone: they are saved as integers, which must come from the weights as the
    method left them and not from rounded ones. Buffers that are not saved (rotary frequencies) keep their precision.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        integers = leaf == "weight" and hasattr(model.get_submodule(owner), "quantization_scheme")
        if tensor.is_floating_point() and not integers:
            tensor.data = tensor.data.to(dtype).to(tensor.dtype)


def _save(model: Any, dtype: torch.dtype, job: QuantizeJob) -> None:
    """Compress in the dtype of the arithmetic, cast what is left to `dtype`, write the checkpoint."""
    from compressed_tensors import ModelCompressor
    from transformers import GenerationConfig

    arithmetic = model.dtype
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.dtype == arithmetic:
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    # transformers refuses to save generation settings that contradict each other; the file is copied as it is instead.
    model.generation_config = GenerationConfig()
    with warnings.catch_warnings():
        # compressed-tensors notes each module's device before it saves, and transformers takes "cpu" for offloading
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(job.out, save_compressed=True)
    copy_text_files(job.checkpoint, job.out)
