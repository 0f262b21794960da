"""A model as one unquantized GGUF file: what llama.cpp's baseline is, and what every GGUF variant is made of.

From a Hugging Face checkpoint llama.cpp's own converter makes it, in the checkpoint's dtype, so that no number changes.
Where the model came as a GGUF file, that file is expanded by llama.cpp instead: what it says of its tokenizer, chat
template and rope scaling stays word for word, and is not derived twice.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from quantize.errors import QuantizeError
from quantize.gguf_file import read_gguf
from quantize.handed import Host, Progress
from quantize.methods._gguf_call import call, write_job
from quantize.methods._gguf_contents import gguf_contents
from quantize.methods._text_files import copy_text_files

__all__ = ["MODEL_FILE", "Dtype", "card_of_variant", "convert_to_gguf", "copy_beside", "quantize_file"]

MODEL_FILE = "model.gguf"
Dtype = Literal["auto", "F32", "F16", "BF16"]

#: safetensors' dtypes that a GGUF file holds as they are.
_PLAIN = {"F32", "F16", "BF16"}
_CARD = "README.md"


def convert_to_gguf(
    checkpoint: Path,
    source_gguf: Path | None,
    out: Path,
    host: Host,
    progress: Progress,
    dtype: Dtype = "auto",
) -> dict[str, Any]:
    """Write `out`/model.gguf and the text files of `checkpoint` beside it; returns what the file holds.

    `auto` is the checkpoint's own dtype; for a GGUF source, its own where it is not quantized, else F32. Raises
    QuantizeError where llama.cpp does not know the architecture or tokenizer, or the checkpoint is quantized.
    """
    with tempfile.TemporaryDirectory() as folder:
        if source_gguf is not None:
            kind = _dtype_of_gguf(source_gguf) if dtype == "auto" else dtype
            quantize_file(source_gguf, out / MODEL_FILE, kind, Path(folder), host, progress, requantize=True)
        else:
            kind = _dtype_of(checkpoint) if dtype == "auto" else dtype
            card = write_job(Path(folder), _card(checkpoint))
            arguments: list[str | Path] = ["--outfile", out / MODEL_FILE, "--outtype", kind.lower()]
            arguments += ["--metadata", card, checkpoint.resolve()]
            call(host, "_gguf_child_convert.py", arguments, what="converting to GGUF", progress=progress)
    copy_beside(checkpoint, out)
    return {
        "dtype": kind,
        "from": "gguf" if source_gguf is not None else "checkpoint",
        **gguf_contents(out / MODEL_FILE),
    }


def copy_beside(checkpoint: Path, out: Path) -> None:
    """Lay the baseline's configuration, tokenizer and generation settings beside the GGUF file, byte for byte."""
    shutil.copyfile(checkpoint / "config.json", out / "config.json")
    copy_text_files(checkpoint, out)


def quantize_file(
    source: Path,
    out: Path,
    kind: str,
    folder: Path,
    host: Host,
    progress: Progress,
    *,
    requantize: bool = False,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write `source` in the file type `kind` to `out`, by `llama_model_quantize`; `folder` is for the job.

    `options` may give `output`, `token_embedding`, `pure`, `tensor_types`, `metadata` and `importance`.
    """
    job = {
        "source": str(source.resolve()),
        "out": str(out),
        "type": kind,
        "requantize": requantize,
        "threads": host.threads,
        "output": None,
        "token_embedding": None,
        "pure": False,
        "tensor_types": {},
        "metadata": {},
        "importance": None,
        **(options or {}),
    }
    what = f"writing {kind}"
    call(host, "_gguf_child_quantize.py", [write_job(folder, job)], what=what, progress=progress)


def _dtype_of(checkpoint: Path) -> str:
    """The dtype of the checkpoint's matrices, F32 where they differ: nothing is rounded."""
    kinds = set()
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        kinds |= {
            entry["dtype"] for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1
        }
    if not kinds <= _PLAIN:
        raise QuantizeError(
            f"weights of dtype {', '.join(sorted(kinds - _PLAIN))} have no exact GGUF type.",
            where=str(checkpoint),
            fix="Give the unquantized model.",
        )
    return kinds.pop() if len(kinds) == 1 else "F32"


def _dtype_of_gguf(path: Path) -> str:
    types = set(gguf_contents(path)["types"])
    return types.pop() if len(types) == 1 and types <= _PLAIN else "F32"


def _card(checkpoint: Path) -> dict[str, str]:
    """What the model card does not say and the converter would guess from the directory's name."""
    if (checkpoint / _CARD).is_file():
        return {}
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    named = Path(str(config.get("_name_or_path") or "")).name
    return {"general.name": named or str(config.get("model_type", "model"))}


def card_of_variant(full: Path, *, importance: bool) -> dict[str, str | int]:
    """Metadata of a quantized file: who made it, of what. A base model that the source names itself is kept."""
    metadata = read_gguf(full).metadata
    card: dict[str, str | int] = {"general.quantized_by": "quantize"}
    if "general.base_model.count" not in metadata and "general.name" in metadata:
        card |= {"general.base_model.count": 1, "general.base_model.0.name": str(metadata["general.name"])}
        if "general.organization" in metadata:
            card["general.base_model.0.organization"] = str(metadata["general.organization"])
    return card | ({"quantize.imatrix.file": "imatrix.gguf"} if importance else {})
