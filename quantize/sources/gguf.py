"""A GGUF file as a source: its weights dequantized, its tokenizer rebuilt, saved as a Hugging Face checkpoint.

Dequantizing is exact (each stored block stands for certain float32 values), so the checkpoint is the same model; what
is lost is the size. Nothing is guessed: a weight that the loader could not place, a rope scaling that it dropped, or an
unknown tokenizer stops the conversion.

A source that was quantized before is already on a coarse grid: losses of a new low-bit scheme look smaller on it than
on original weights.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.gguf_file import GgufFile, read_gguf
from quantize.gguf_model import ROPE_FACTORS, dequantized
from quantize.handed import Progress
from quantize.record import Record
from quantize.sources._check import check_checkpoint
from quantize.sources._digests import remembered_sha256
from quantize.sources._gguf_tokenizer import USE_ORIGINAL, build_tokenizer

__all__ = ["SOURCE_FILE", "Gguf", "to_checkpoint"]

#: The link to the original file, beside the checkpoint.
SOURCE_FILE = "source.gguf"

_FLOAT32_BYTES = 4
_SPECIAL_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


class Gguf(Record):
    """A single-file GGUF model on this machine."""

    kind: Literal["gguf"] = "gguf"
    online: ClassVar[bool] = False
    path: str

    @property
    def libraries(self) -> tuple[str, ...]:
        """See `protocols.Source`."""
        return ()

    def pinned(self, identity: dict[str, Any]) -> Gguf:
        """See `protocols.Source`."""
        return self

    def problems(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return []

    def notes(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return []

    def identity(self) -> dict[str, Any]:
        """The file's sha256."""
        path = Path(self.path)
        if not path.is_file():
            raise SourceError("there is no such GGUF file.", where=self.path, fix="Check model.path in the recipe.")
        return {"sha256": remembered_sha256(path)}

    def facts(self) -> ModelFacts:
        """Exact, from the GGUF's header: sizes are those of the float32 checkpoint that it becomes."""
        gguf = read_gguf(Path(self.path))
        shapes = {name: shape for name, shape in gguf.shapes.items() if not name.startswith(ROPE_FACTORS)}
        parameters = sum(math.prod(shape) for shape in shapes.values())
        linears = Counter(
            "x".join(map(str, shape)) for name, shape in shapes.items() if name.startswith("blk.") and len(shape) == 2
        )
        return ModelFacts(
            architecture=gguf.architecture,
            layers=gguf.hyperparameter("block_count"),
            hidden_size=gguf.hyperparameter("embedding_length"),
            vocab_size=len(gguf.metadata.get("tokenizer.ggml.tokens", [])) or None,
            dtype="float32",
            linears=dict(sorted(linears.items())),
            parameters=parameters,
            bytes=parameters * _FLOAT32_BYTES,
            unknown=[],
            context=gguf.hyperparameter("context_length"),
        )

    def fetch(self, out: Path, progress: Progress) -> None:
        """Convert the file into a checkpoint, check what came out, and refer to the file beside it.

        GGUF variants are made of the file itself, so that they keep what it says of itself (`convert`).
        """
        progress(f"dequantizing {Path(self.path).name}", 0, None)
        to_checkpoint(Path(self.path), out)
        check_checkpoint(out, progress)
        (out.parent / SOURCE_FILE).symlink_to(Path(self.path).resolve())


def to_checkpoint(gguf: Path, out: Path) -> None:
    """Write the model in `gguf` to the directory `out` as a float32 checkpoint that transformers loads by itself.

    `out` (made if absent) gets config.json, generation_config.json, model.safetensors (in shards when large),
    tokenizer.json, tokenizer_config.json and the chat template. Peak memory is about twice the float32 weights.

    Raises SourceError for a file that is not GGUF, is cut short, or holds a model or tokenizer that cannot be carried
    over exactly.
    """
    source = read_gguf(gguf)
    # The tokenizer first: it is cheap, and most files that must be refused are refused for it.
    tokenizer = build_tokenizer(source)
    model = _unmarked(dequantized(source, fix=USE_ORIGINAL), source)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _unmarked(loaded: Any, source: GgufFile) -> Any:
    """The same weights in a model that was never marked as GGUF-quantized, which save_pretrained would refuse."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    plain = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        plain.pop(key, None)
    config = type(loaded.config).from_dict(plain)
    for attribute, role in _SPECIAL_IDS.items():
        setattr(config, attribute, source.token_id(role))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Assigned, not copied: a tied embedding and head keep sharing their memory, and are saved once.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model
