"""Which modules of a loaded model get which numbers, said and checked before anything is calibrated."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from quantize.errors import QuantizeError
from quantize.handed import QuantizeJob
from quantize.loading import outside_language
from quantize.methods._modules import linears
from quantize.patterns import hits, named

__all__ = ["describe", "resolve"]

#: What a recipe calls the output head, whatever the model calls it.
_HEAD = "lm_head"


def resolve(job: QuantizeJob, model: Any) -> QuantizeJob:
    """The job with the head by the model's own name. Raises QuantizeError where patterns and modules do not agree.

    Every pattern must hit a Linear, and with groups every Linear must be in exactly one of them or ignored.
    """
    names = linears(model)
    head = head_name(model)
    asked = [head if pattern == _HEAD and head is not None else pattern for pattern in job.ignore]
    ignore = tuple(dict.fromkeys((*asked, *outside_language(model)[1])))
    modules = [name for name, _ in model.named_modules() if name]
    for pattern in (p for p in ignore if p not in {_HEAD, head}):
        _must_hit(pattern, modules, f"ignore: {pattern}")
    for group in job.scheme.groups:
        for pattern in group.targets:
            _must_hit(pattern, names, f"config_groups.{group.name}: {pattern}")
    if job.scheme.groups:
        found = hits(names, job.scheme.groups, ignore)
        for name in (name for name in names if name not in found.ignored):
            told = found.groups.get(name, ())
            if len(told) != 1:
                what = f"is in the groups {' and '.join(told)}" if told else "is in no group and not ignored"
                raise QuantizeError(
                    f"the Linear {name} {what}.",
                    where="config_groups",
                    fix="Name every Linear in one group, or in `ignore`.",
                )
    return replace(job, ignore=ignore)


def head_name(model: Any) -> str | None:
    """The full name of the output head."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head and head is not None), None)


def describe(job: QuantizeJob, model: Any) -> str:
    """One line: how many Linears get which scheme, how many are left alone, and what becomes of head and embeddings."""
    names, head = linears(model), head_name(model)
    found = hits(names, job.scheme.groups, job.ignore)
    counts: dict[str, int] = {}
    for name in (name for name in names if name not in found.ignored):
        told = next((g.scheme.name for g in job.scheme.groups if g.name in found.groups.get(name, ())), job.scheme.name)
        counts[told] = counts.get(told, 0) + 1
    said = ", ".join(f"{count} Linears {scheme}" for scheme, count in counts.items())
    parts, outside = outside_language(model)
    around = f", {len(outside)} of them outside language, in {', '.join(parts)}" if parts else ""
    kept = "left as it is" if head in found.ignored else "quantized"
    return f"{said}; {len(found.ignored)} ignored{around}; the head {head} is {kept}, embeddings are left as they are"


def _must_hit(pattern: str, names: list[str], where: str) -> None:
    if any(named(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.0)
    raise QuantizeError(
        "the pattern matches nothing in the model.", where=where, fix=f"The nearest are {', '.join(near)}."
    )
