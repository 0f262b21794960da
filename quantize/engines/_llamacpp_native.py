"""llama.cpp's own server, asked what it makes of texts, conversations and ends of answers.

What the evals ask of the library goes past the server's tokenizer, template and stopping rules. Those are what
production meets, so they are asked of the server itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.engines._llamacpp_http import LlamaServer

if TYPE_CHECKING:
    from quantize.engines.llamacpp import LlamaCpp

__all__ = ["Native"]

_ANSWER_SECONDS = 300.0
#: Added to a token's logit so that it is the likeliest.
_BIAS = 1e5


class Native:
    """A server on `options["model"]`: xllamacpp's in the interpreter `python`, or `llama-server` where that is None."""

    def __init__(self, python: Path | None, options: dict[str, Any], log: Path, engine: LlamaCpp) -> None:
        # Of numbers it is asked none, and the GPU has the model already.
        serving = {**options, "gpu_layers": 0, "parallel": 1}
        self._server = LlamaServer(python, serving, log, engine.load_seconds, _ANSWER_SECONDS)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a completion's prompt."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._server.post("/tokenize", asked)["tokens"]]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation, up to where the answer begins."""
        return self.tokenize(self._server.post("/apply-template", {"messages": messages})["prompt"])

    def stops(self, ids: list[int], token: int) -> bool:
        """Whether an answer ends where its first token is `token`."""
        asked = {
            "prompt": ids,
            "n_predict": 2,
            "temperature": 0.0,
            "logit_bias": [[token, _BIAS]],
            "cache_prompt": False,
        }
        reply = self._server.post("/completion", asked)
        return bool(reply["stop_type"] == "eos" and reply["tokens_predicted"] == 1)

    def close(self) -> None:
        """End the server."""
        self._server.close()
