"""What a checkpoint must be before anything is spent on it: complete, without pickle, without code, without NaN."""

from __future__ import annotations

from pathlib import Path

from quantize.errors import SourceError
from quantize.handed import Progress
from quantize.sources._facts import read_config, read_header, read_index, weight_files

__all__ = ["LICENCE_FILES", "PICKLES", "WANTED", "check_checkpoint", "check_files"]

#: What a licence, and what it refers to, is called: it goes wherever the weights go.
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
#: The files of a model directory that are taken: weights in safetensors, and text. Nothing that could run.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md", *LICENCE_FILES)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_files(checkpoint: Path) -> None:
    """What can be checked without reading the weights. Raises SourceError."""
    config = read_config(checkpoint / "config.json")
    if "auto_map" in config:
        raise SourceError(
            "the model runs code of its own (auto_map), which is never executed.",
            where=str(checkpoint / "config.json"),
            fix="Use a model that transformers implements itself.",
        )
    if not any(checkpoint.glob("*.safetensors")):
        pickles = sorted(path.name for path in checkpoint.iterdir() if path.suffix in PICKLES)
        found = f"only pickle weights ({pickles[0]}), which can run code when loaded" if pickles else "no weights"
        raise SourceError(
            f"there are {found}.",
            where=str(checkpoint),
            fix="Save the model with save_pretrained(safe_serialization=True) and point the recipe there.",
        )
    _check_shards(checkpoint)
    if not any((checkpoint / name).is_file() for name in _TOKENIZERS):
        raise SourceError("there is no tokenizer.", where=str(checkpoint), fix="Save the tokenizer beside the weights.")


def _check_shards(checkpoint: Path) -> None:
    """Every weight file whole, and every tensor of the index in the shard that it names."""
    mapping = read_index(checkpoint)
    for path in weight_files(checkpoint):
        if not path.is_file():
            raise SourceError(f"the shard {path.name} is missing.", where=str(checkpoint), fix="Fetch the model again.")
        held = read_header(path)
        lost = sorted(name for name, shard in mapping.items() if shard == path.name and name not in held)
        if lost:
            raise SourceError(f"the tensor {lost[0]} is not in its shard.", where=str(path), fix="Fetch it again.")


def check_checkpoint(checkpoint: Path, progress: Progress) -> None:
    """`check_files`, and every floating-point tensor finite; one tensor in memory at a time. Raises SourceError."""
    import torch
    from safetensors import safe_open

    check_files(checkpoint)
    weights = weight_files(checkpoint)
    total = sum(path.stat().st_size for path in weights)
    done = 0
    for path in weights:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float().sum())):
                    bad = int((~torch.isfinite(tensor.float())).sum())
                    if bad:
                        raise SourceError(
                            f"the tensor {name} has {bad} values that are NaN or infinite.",
                            where=str(path),
                            fix="The checkpoint is damaged: fetch it again or save it anew.",
                        )
                done += tensor.numel() * tensor.element_size()
                progress(f"checking {path.name}", done, total)
