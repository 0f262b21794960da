"""Real traffic, sent by GuideLLM to a server that speaks OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quantize.errors import QuantizeError
from quantize.handed import Host
from quantize.protocols import Sender
from quantize.record import Record
from quantize.traffic._guidellm_sender import GuideLLMSender

__all__ = ["GuideLLM"]


class GuideLLM(Record):
    """Requests as a service meets them: closed loops, or arrivals that wait for nobody.

    One GuideLLM process sends all loads, from one worker process: it hands requests out in their order, and the same
    seed gives every arm the same arrivals. `request_format` is where it asks: the chat endpoint puts the model's chat
    template around every prompt.
    """

    kind: Literal["guidellm"] = "guidellm"
    served: ClassVar[bool] = True
    environment: ClassVar[str | None] = "guidellm"
    request_format: Annotated[
        Literal["/v1/completions", "/v1/chat/completions"], Field(description="The endpoint that is asked.")
    ] = "/v1/completions"

    def open(self, tokenizer: Path, host: Host) -> Sender:
        """Start GuideLLM; the first load waits until it is ready."""
        python = host.interpreters.get("guidellm")
        if python is None:
            raise QuantizeError("the environment guidellm is not at hand.", fix="Make it: quantize env create guidellm")
        return GuideLLMSender(python, tokenizer, host.log / "guidellm.log", self.request_format)
