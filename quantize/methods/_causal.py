"""Calibration attends as the model does: to what came before, and not to what comes after.

Symptom in llm-compressor 0.14, without any error: models whose forward chooses its mask by a setting (`mask_function =
create_causal_mask if ... else ...; mask_function(...)`: Mistral, Phi-3, Qwen3-MoE, Starcoder2) are calibrated without
a mask, every token seeing those after it. `AutoWrapper` sets calls of `create_causal_mask` aside, and finds them by
looking the called name up among a module's globals; a name that the function has given itself is not there, so the mask
is made while the model is traced, when there is none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FunctionType
from typing import Any

from quantize.errors import QuantizeError

__all__ = ["causal_tracing", "must_be_causal"]

_AFFECTED = ("0.14.",)
#: Where transformers has what makes masks.
_MASKS = "transformers.masking_utils"


@contextmanager
def causal_tracing() -> Iterator[None]:
    """Let llm-compressor 0.14 find masks by names that a forward has given to their functions; else do nothing."""
    from llmcompressor.pipelines.sequential.ast_utils import AutoWrapper

    if not version("llmcompressor").startswith(_AFFECTED):
        yield
        return

    def visit(self: Any, node: ast.Assign) -> ast.Assign:
        """A name for what makes masks joins the globals, where calls are looked up, and is set aside."""
        self.generic_visit(node)
        target = node.targets[0]
        if len(node.targets) == 1 and isinstance(target, ast.Name):
            try:
                value = self._eval_expr(node.value)
            except Exception:  # noqa: BLE001 (whatever evaluating a stranger's expression raises: it is no such name)
                return node
            if isinstance(value, FunctionType) and value.__module__ == _MASKS:
                self.namespace[target.id] = value
                self.ignore = [*self.ignore, value.__name__]
        return node

    AutoWrapper.visit_Assign = visit
    try:
        yield
    finally:
        del AutoWrapper.visit_Assign


@contextmanager
def must_be_causal(model: Any) -> Iterator[None]:
    """While it lasts, attention of a model that computes masks itself (eager) and is given none is an error.

    Raises QuantizeError: whatever the reason, such a calibration is of another model.
    """

    def look(module: Any, _: Any, given: dict[str, Any]) -> None:
        eager = getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
        hidden = given.get("hidden_states")
        several = hidden is None or hidden.shape[1] > 1
        if eager and several and "attention_mask" in given and given["attention_mask"] is None:
            raise QuantizeError(
                f"llm-compressor would calibrate {type(module).__name__} without its causal mask, on other activations "
                "than the model has.",
                fix="Report it with the model's name; a method that is not calibrated (rtn with W4A16 or FP8_DYNAMIC) "
                "does not need one.",
            )

    causal = [module for module in model.modules() if getattr(module, "is_causal", False) is True]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in causal]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
