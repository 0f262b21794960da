"""Experts that calibration hardly reaches: what becomes of them is the recipe's to say, and is always told.

An expert that is calibrated only on what the router sends it, and is sent nothing, is destroyed without a word: GPTQ
makes zeros of its weights, and ranges of activations that nobody saw are stored as whatever lay in memory. So tokens
are counted in the unquantized model before anything is calibrated, and once more while it is.

vLLM reads the scheme of a layer's first expert for all of them. A layer of experts is therefore left whole or not at
all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantize.errors import QuantizeError
from quantize.experts import Routed
from quantize.handed import QuantizeJob

__all__ = ["check", "settle"]

#: Of a list of experts: so many names.
_SHOWN = 4


def settle(job: QuantizeJob, model: Any) -> QuantizeJob:
    """The job with layers of uncovered experts in `ignore`, where they are to be left; told what was counted.

    Raises QuantizeError where they are to be refused, and for a model without experts.
    """
    if job.uncovered == "calibrate_all" or job.tokens is None:
        return job
    layers = _counted(job, model)
    if not layers:
        raise QuantizeError(
            "the model has no experts that a router chooses from.", fix="Leave `experts` out of the variant."
        )
    few = {name: n for experts in layers.values() for name, n in experts.items() if n < job.least_tokens}
    total = sum(map(len, layers.values()))
    found = f"{len(few)} of {total} experts get fewer than {job.least_tokens} calibration tokens ({_listed(few)})"
    if few and job.uncovered == "refuse":
        raise QuantizeError(
            f"{found}.",
            where="experts",
            fix="Calibrate on more text, or on text of what they are for; or set experts.uncovered to calibrate_all, "
            "or to leave.",
        )
    left = [layer for layer, experts in layers.items() if few.keys() & experts.keys()]
    told = f"{found}: the experts of {', '.join(left)} were left as they are"
    sentence = told if few else f"each of {total} experts got {job.least_tokens} calibration tokens or more"
    sentence += f"; {'the others' if few else 'all'} were calibrated on what the router sends them"
    _tell(job, sentence, experts=total, least_tokens=job.least_tokens, few=few, left=left)
    return replace(job, ignore=(*job.ignore, *(f"re:{re.escape(layer)}\\." for layer in left)))


def check(job: QuantizeJob, routed: Routed) -> None:
    """Tell how the experts were reached while they were calibrated. Raises QuantizeError for one that was not.

    Layers that are quantized before it change what a router sees.
    """
    layers = routed.tokens()
    if job.uncovered == "calibrate_all":
        _tell_all(job, layers)
        return
    left = tuple(pattern for pattern in job.ignore if pattern.startswith("re:"))
    for layer, experts in layers.items():
        empty = [name for name, count in experts.items() if count == 0]
        if empty and f"re:{re.escape(layer)}\\." not in left:
            raise QuantizeError(
                f"once the layers before it were quantized, the router sent {empty[0]} no token.",
                where="experts",
                fix="Calibrate on more text, raise experts.least_tokens, or set experts.uncovered to calibrate_all.",
            )


def _counted(job: QuantizeJob, model: Any) -> dict[str, dict[str, int]]:
    """How many tokens the unquantized model sends to each expert, by layer. It is left in the host's memory."""
    import torch
    from compressed_tensors.offload import dispatch_model, remove_dispatch

    rows = job.tokens or ()
    on_cpu = job.device == "cpu"
    if not on_cpu:
        dispatch_model(model)
    with Routed(model) as routed, torch.no_grad():
        for number, row in enumerate(rows, start=1):
            if number == 1 or routed.tokens():  # a model without experts is found out by its first row
                model(input_ids=row[None].to(job.device), use_cache=False)
                job.progress("counting the tokens of each expert", number, len(rows))
    if not on_cpu:
        remove_dispatch(model)
        model.to("cpu")
    return routed.tokens()


def _tell_all(job: QuantizeJob, layers: Mapping[str, Mapping[str, int]]) -> None:
    """How many experts no token reached, and the least share; nothing for models without experts."""
    if not layers:
        return
    shares = {name: n / sum(experts.values()) for experts in layers.values() for name, n in experts.items()}
    least = min(shares, key=lambda name: shares[name])
    reached = sum(share > 0 for share in shares.values())
    sentence = (
        f"calibration text reached {reached} of {len(shares)} experts by itself (least {least}, {shares[least]:.1%} of "
        "its layer's choices); every expert was calibrated on all of it"
    )
    _tell(job, sentence, experts=len(shares), reached=reached)


def _tell(job: QuantizeJob, sentence: str, **facts: Any) -> None:
    job.progress(sentence, 0, None)
    told = f"{sentence[:1].upper()}{sentence[1:]}."
    job.tell({"experts": {"uncovered": job.uncovered, **facts, "sentences": [told]}})


def _listed(few: Mapping[str, int]) -> str:
    names = [f"{name}: {count}" for name, count in sorted(few.items(), key=lambda pair: pair[1])[:_SHOWN]]
    return ", ".join([*names, *(["…"] if len(few) > _SHOWN else [])])
