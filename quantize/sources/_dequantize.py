"""A natively quantized checkpoint -> the same names with the floats that they stand for, shard by shard.

    fp8                  value x its block's scale, in float32           compressed-tensors' converter
    compressed-tensors   whatever its compressor unpacks                 compressed-tensors' converter
    mxfp4                two values a byte x a power of two              transformers' arithmetic

No model is built, so memory is that of one shard. Every result is rounded once to the dtype that `config.json` names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import QuantizeError, SourceError
from quantize.handed import Progress
from quantize.sources._check import check_checkpoint, check_files
from quantize.sources._facts import read_config, read_header, weight_files
from quantize.sources._stored import Stored, stored_as

if TYPE_CHECKING:
    import torch

__all__ = ["lay_down"]

_SCALE = ".weight_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_ORIGINAL = "Give the unquantized model, or take this one as a variant with `method: {kind: existing, …}`."


def lay_down(link: Callable[[Path], None], out: Path, progress: Progress, *, dequantize: bool) -> None:
    """Let `link` put a checkpoint's files into `out`, dequantized where that is wanted, and check what is there.

    Raises SourceError where the weights are stored as no floats and `dequantize` was not said, or the reverse.
    """
    if not dequantize:
        link(out)
        stored = stored_as(read_config(out / "config.json"))
        if stored is not None:
            raise SourceError(
                f"its weights are stored as {stored.name}.",
                where=str(out),
                fix=f"Set `model.dequantize: true`. {_ORIGINAL}" if stored.refusal is None else _ORIGINAL,
            )
        check_checkpoint(out, progress)
        return
    kept = out.parent / ".stored"
    kept.mkdir()
    try:
        link(kept)
        check_checkpoint(kept, progress)
        _dequantize(kept, out, progress)
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    check_checkpoint(out, progress)


def _dequantize(checkpoint: Path, out: Path, progress: Progress) -> None:
    """Write `checkpoint` into the empty `out` in plain floats. Raises SourceError."""
    import torch
    from compressed_tensors.entrypoints.convert import convert_checkpoint
    from loguru import logger

    config = read_config(checkpoint / "config.json")
    stored = stored_as(config)
    if stored is None or stored.refusal is not None:
        why = stored.refusal if stored is not None else "they are plain floats already"
        raise SourceError(f"its weights cannot be dequantized: {why}.", where=str(checkpoint), fix=_ORIGINAL)
    shards = set(weight_files(checkpoint))
    for path in checkpoint.glob("*.safetensors"):  # a second form of the same weights is not carried over
        if path not in shards:
            path.unlink()
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    progress(f"dequantizing {stored.name} to {named}", 0, None)
    logger.disable("compressed_tensors")  # a line for every file copied
    try:
        convert_checkpoint(
            str(checkpoint), str(out), _converter(checkpoint, config, stored, getattr(torch, named)), device="cpu"
        )
    except QuantizeError:  # a stop on request arrives as one
        raise
    except (ValueError, KeyError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise SourceError(
            f"its {stored.name} weights cannot be dequantized: {type(error).__name__}: {error}.",
            where=str(checkpoint),
            fix=_ORIGINAL,
        ) from error
    finally:
        logger.enable("compressed_tensors")
    _all_floats(out, stored)
    check_files(out)


def _converter(checkpoint: Path, config: dict[str, Any], stored: Stored, dtype: torch.dtype) -> list[Any]:
    from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer, FP8BlockDequantizer

    if stored.kind == "mxfp4":
        return [_Mxfp4(dtype)]
    names = {name for path in weight_files(checkpoint) for name in read_header(path)}
    if stored.kind == "compressed-tensors":
        # What has no scale is plain, whatever the patterns of the config may mean: they are held against names only.
        weights = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        plain = [name for name in weights if f"{name}.weight_scale" not in names]
        return [CompressedTensorsDequantizer(str(checkpoint), ignore=plain, dtype=dtype)]
    scaled = [name.removesuffix(_SCALE) for name in names if name.endswith(_SCALE)]
    sides = config["quantization_config"]["weight_block_size"]
    blocks = FP8BlockDequantizer(targets=scaled, weight_block_size=tuple(sides), dtype=dtype)
    return [blocks, _Whole()]


def _all_floats(out: Path, stored: Stored) -> None:
    """Raises SourceError for a tensor that came through as it was stored, or a scale that no weight took."""
    for path in weight_files(out):
        for name, tensor in read_header(path).items():
            left = tensor["dtype"] in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "U8")
            if left or name.endswith((_SCALE, "_scale_inv", "activation_scale", "input_scale")):
                raise SourceError(
                    f"the tensor {name} ({tensor['dtype']}) is not stored as {stored.name} has it.",
                    where=str(path),
                    fix=_ORIGINAL,
                )


class _Whole:
    """A converter for what the one before it cut out of larger blocks, which safetensors does not write."""

    def process(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same tensors, each with memory of its own."""
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    validate = process

    def update_config(self, config: Any) -> None:
        """Nothing is quantized afterwards."""

    def update_model_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return config

    def get_dependencies(self, weight_name: str) -> set[str]:
        """None."""
        return set()


class _Mxfp4:
    """A converter of compressed-tensors for what gpt-oss is stored in: `X_blocks` and `X_scales` (bytes) -> `X`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def process(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Blocks (experts, out, in / 32, 16) and scales (experts, out, in / 32) -> (experts, in, out)."""
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        for name in [name for name in tensors if name.endswith(_BLOCKS)]:
            weight = name.removesuffix(_BLOCKS)
            blocks, scales = tensors.pop(name), tensors.pop(weight + _SCALES)
            tensors[weight] = convert_moe_packed_tensors(blocks, scales, dtype=self.dtype).contiguous()
        return tensors

    def validate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The names that will be there: the arithmetic needs values."""
        return {name.removesuffix(_BLOCKS): tensor for name, tensor in tensors.items() if not name.endswith(_SCALES)}

    def update_config(self, config: Any) -> None:
        """Nothing is quantized afterwards."""

    def update_model_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return config

    def get_dependencies(self, weight_name: str) -> set[str]:
        """A matrix' scales, which may lie in another shard."""
        return {weight_name.removesuffix(_BLOCKS) + _SCALES} if weight_name.endswith(_BLOCKS) else set()
