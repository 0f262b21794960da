"""The baseline's distributions, from its hidden states and its own head."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quantize.errors import DataError, QuantizeError
from quantize.protocols import Session

if TYPE_CHECKING:
    import torch

__all__ = ["Reference", "store_reference"]

_STATES, _HEAD = "reference.safetensors", "head.json"

#: Positions that are read back, and how far their logits may lie apart: bfloat16, the coarsest, rounds to 0.4 %.
_CHECKED, _TOLERANCE = 8, 1e-2


class Reference:
    """What the baseline's `evaluate` artifact keeps, and the head in the baseline's checkpoint."""

    def __init__(self, artifact: Path, checkpoint: Path) -> None:
        import torch
        from safetensors.torch import load_file

        stored = load_file(artifact / _STATES)
        self._hidden, self._tokens = stored["hidden"], stored["tokens"]
        head = json.loads((artifact / _HEAD).read_text(encoding="utf-8"))
        self._multiply, self._cap = head["multiply"], head["cap"]
        dtype = getattr(torch, head["dtype"])
        self._weight = _tensor(checkpoint, head["weights"]).to(dtype)
        self._bias = _tensor(checkpoint, head["biases"]).to(dtype) if head["biases"] else None

    def logits(self, start: int, stop: int, device: Any) -> torch.Tensor:
        """The baseline's float32 logits (positions, vocabulary) at scored positions `start` to `stop`."""
        import torch

        if self._weight.device != device:
            self._weight = self._weight.to(device)
            self._bias = self._bias.to(device) if self._bias is not None else None
        hidden = self._hidden[start:stop].to(device=device, dtype=self._weight.dtype)
        logits = torch.nn.functional.linear(hidden, self._weight, self._bias).float() * self._multiply
        if self._cap:
            logits = torch.tanh(logits / self._cap) * self._cap
        return cast("torch.Tensor", logits)

    def same_tokens(self, tokens: torch.Tensor) -> bool:
        """True where these are the baseline's scored tokens."""
        import torch

        return torch.equal(tokens, self._tokens)


def store_reference(
    session: Session, hidden: torch.Tensor, tokens: torch.Tensor, out: Path, checkpoint: Path | None
) -> None:
    """Keep `hidden` (positions, hidden; float32) and scored `tokens` (positions), and how the head is applied.

    With the baseline's `checkpoint`, the first positions are read back and its stored head must give what the session's
    gives: a head stored under another name or packed would falsify every divergence. Raises QuantizeError.
    """
    import torch
    from safetensors.torch import save_file

    save_file({"hidden": hidden.contiguous(), "tokens": tokens.contiguous()}, out / _STATES)
    (out / _HEAD).write_text(json.dumps(asdict(session.head_parameters())), encoding="utf-8")
    if checkpoint is not None:
        again = Reference(out, checkpoint).logits(0, _CHECKED, "cpu")
        logits = session.head(hidden[:_CHECKED]).cpu()
        if not torch.allclose(again, logits, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise QuantizeError(
                "the output head in the weight files is not the one that the model applies.",
                where=str(checkpoint),
                fix="Leave the text eval out for this model.",
            )


def _tensor(checkpoint: Path, names: list[str]) -> torch.Tensor:
    """The first of `names` that a checkpoint's weight files hold."""
    from safetensors import safe_open

    for name in names:
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                    return cast("torch.Tensor", tensors.get_tensor(name))
    raise DataError(f"the checkpoint holds no output head under {' or '.join(names)}.", where=str(checkpoint))
