"""model_free: round to nearest straight on the files, without building the model.

llm-compressor's `model_free_ptq` reads tensor after tensor, rounds it as `rtn` does, and writes it again: memory is
that of one file, and nobody has to know the architecture. What is a Linear is told by names and shapes alone: two
dimensions, and no embedding, head or router. There is no model in memory, so the witness is a reference that is read
from the new files by transformers; where transformers does not know the architecture there is none, and the proof says
so.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError, SourceError
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, group_size_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES, settings
from quantize.methods._text_files import copy_text_files
from quantize.patterns import hits, named
from quantize.record import Record
from quantize.scheme import Scheme
from quantize.sources import linear_names

__all__ = ["ModelFree"]

#: Said to be left alone even where the files have none: a head that is the embedding is a module all the same.
_HEAD = "lm_head"


class ModelFree(Record):
    """Round to nearest, by llm-compressor's model_free_ptq."""

    kind: Literal["model_free"] = "model_free"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()

    @property
    def format(self) -> str:
        """The container on disk."""
        return FORMAT

    @property
    def calibrated(self) -> bool:
        """Never: nothing runs."""
        return False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return LIBRARIES

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """No ranges of activations, keys or values, for which the model would have to run; groups that fit."""
        if scheme.calibrated:
            what = f"model_free runs nothing, and {scheme.name} stores ranges that are found by running the model"
            return [f"{what}: take rtn, or a scheme without them, as FP8_DYNAMIC or W4A16."]
        return family_problems("model_free", scheme, FORMAT) + group_size_problems(scheme, facts)

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`. Raises QuantizeError where patterns and names do not agree."""
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
        from llmcompressor import model_free_ptq

        if job.scheme.kv_cache is not None:
            raise QuantizeError("model_free finds no scales of keys and values.", fix="Leave `kv_cache` out.")
        linears, others = linear_names(job.checkpoint)
        ignored = _ignored(job, linears)
        said = f"quantizing: {len(linears) - len(ignored)} Linears {job.scheme.name}; {len(ignored)} ignored"
        job.progress(f"{said}; by names and shapes alone, head and embeddings are left as they are", 0, None)
        told: dict[str, Any] = {**settings(job), "ignore": list(dict.fromkeys([*ignored, *others, _HEAD]))}
        config = QuantizationConfig(quantization_status=QuantizationStatus.INITIALIZED, **told)
        try:
            model_free_ptq(str(job.checkpoint), str(job.out), config=config, device=job.device)
        except ValueError as error:
            raise QuantizeError(f"the files cannot be quantized: {error}", where=str(job.checkpoint)) from error
        copy_text_files(job.checkpoint, job.out)
        job.progress("asking a reference", 0, None)
        job.refer(job.out)


def _ignored(job: QuantizeJob, linears: list[str]) -> list[str]:
    """The Linears that are left alone. Raises QuantizeError for a pattern that means none, or a Linear in no group."""
    if not linears:
        raise SourceError(
            "no tensor of its files is a Linear's by name and shape.",
            where=str(job.checkpoint),
            fix="Experts in one tensor are not taken apart: take another method.",
        )
    found = hits(linears, job.scheme.groups, job.ignore)
    lost = [pattern for pattern in job.ignore if pattern != _HEAD and not any(named(n, pattern) for n in linears)]
    if lost:
        raise QuantizeError("the pattern matches nothing in the files.", where=f"ignore: {lost[0]}", fix="Correct it.")
    for name, groups in found.groups.items():
        if job.scheme.groups and len(groups) != 1:
            what = "in several groups" if groups else "in no group and not ignored"
            raise QuantizeError(f"{name} is {what}.", where="config_groups", fix="Name every Linear in one group.")
    return sorted(found.ignored)
