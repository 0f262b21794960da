"""One forward pass over a pack: a tree of tokens in one row, each token seeing only its own ancestors.

The model's own forward does everything: `position_ids` say how deep each token stands, a mask of four dimensions says
what it sees, and `logits_to_keep` names the places whose logits are wanted, so that the output matrix, a fifth of a
small model's work, and whatever scale or cap follows it, is computed only there. A model that does not take these
three as Llama does is found out by `agrees`, which holds a pack against plain passes.

Imported only by functions that have a model loaded, so it may import torch at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from quantize.engines._packing import Asked, Pack

__all__ = ["agrees", "score", "takes_masks"]

#: How far a pack's logits may lie from a plain pass's, on average, as a part of their own spread. On a trained 135M
#: model rounding alone moves them by 2e-6 in float32, by 0.02 in bfloat16, and by 0.1 where activations are quantized
#: (a value that falls into the next step moves what comes after); a wrong mask moves them by 0.4 and more, wrong
#: positions by 0.15 and more.
_TOLERANCE, _TOLERANCE_OF_SHORT_FLOATS, _TOLERANCE_OF_QUANTIZED = 0.01, 0.06, 0.2


def takes_masks(model: Any) -> bool:
    """Whether the model's attention is one that reads a mask of four dimensions; the others take only lengths."""
    return getattr(model.config, "_attn_implementation", None) in {"sdpa", "eager"}


@torch.inference_mode()
def score(model: Any, pack: Pack) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Place in the answer, summed log-probability and whether it is the greedy one, of each request of a pack."""
    logits = _logits(model, pack).float()
    rows = [row for _, _, after in pack.asked for row in after]
    chosen = [token for _, choice, _ in pack.asked for token in choice]
    owners = [owner for owner, (_, choice, _) in enumerate(pack.asked) for _ in choice]
    place = torch.tensor([rows, chosen, owners], device=logits.device)
    scores = (logits[place[0], place[1]] - logits.logsumexp(-1)[place[0]]).double()
    missed = logits.argmax(-1)[place[0]] != place[1]
    zeros = torch.zeros(len(pack.asked), dtype=torch.double, device=logits.device)
    # Two numbers a request in one copy: each copy waits for the device.
    found = torch.stack([zeros.index_add(0, place[2], scores), zeros.index_add(0, place[2], missed.double())]).tolist()
    for (index, _, _), total, misses in zip(pack.asked, *found, strict=True):
        yield index, (total, misses == 0)


@torch.inference_mode()
def agrees(model: Any, ids: list[int]) -> bool:
    """Whether a pack as deep as these ids has the logits that plain passes have.

    Beside the ids stand a stranger, and a branch that leaves them half-way, each before them in the row: a mask that
    shows too much, or places that are counted along the row, show.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    half = max(1, len(ids) // 2)
    stranger = [(token + 1) % vocabulary for token in ids]
    requests: list[Asked] = [
        (number, path[:half], [*path[half:], 0])
        for number, path in enumerate((stranger, ids[:half] + stranger[half:], ids))
    ]
    pack = Pack()
    for request in requests:
        pack.add(request)
    try:
        packed = _logits(model, pack).float()
    except (TypeError, ValueError, RuntimeError, IndexError):  # what models say to a mask that they do not know
        return False
    for (_, prompt, choice), (_, _, after) in zip(requests, pack.asked, strict=True):
        row = torch.tensor([prompt + choice[:-1]], device=model.device)
        plain = model(row, use_cache=False).logits[0, -len(choice) :].float()
        if packed.shape[1:] != plain.shape[1:] or packed.shape[0] != len(pack.looks):
            return False
        found, finite = packed[after], plain.isfinite()
        if not bool((found.isfinite() == finite).all()):
            return False
        apart = (found - plain)[finite].abs().mean()
        if bool(apart > _tolerance(model) * plain[finite].std()):
            return False
    return True


def _tolerance(model: Any) -> float:
    """See `_TOLERANCE`."""
    if getattr(model.config, "quantization_config", None):
        return _TOLERANCE_OF_QUANTIZED
    return _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_OF_SHORT_FLOATS


def _logits(model: Any, pack: Pack) -> torch.Tensor:
    """Logits (looks, vocabulary) of a pack, in the model's dtype."""
    size = len(pack.tokens)
    sees = np.eye(size, dtype=np.bool_)
    for place, parent in enumerate(pack.parents):
        if parent >= 0:
            sees[place, : parent + 1] = sees[parent, : parent + 1]
    dtype = model.get_input_embeddings().weight.dtype
    seen = torch.from_numpy(sees).to(model.device)
    # Numbers, not booleans: eager attention adds the mask. Not -inf: what minus what would be NaN.
    mask = torch.zeros((size, size), dtype=dtype, device=model.device).masked_fill_(~seen, torch.finfo(dtype).min)
    logits: torch.Tensor = model(
        torch.tensor([pack.tokens], device=model.device),
        attention_mask=mask[None, None],
        position_ids=torch.tensor([pack.depths], device=model.device),
        use_cache=False,
        # A list, which is at home on whichever device the last layer is.
        logits_to_keep=pack.looks,
    ).logits[0]
    return logits
