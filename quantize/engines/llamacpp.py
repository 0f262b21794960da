"""The llamacpp engine: a GGUF file in llama.cpp, in an interpreter of its own.

What is measured is what is served: distributions come from llama.cpp's library (`_llamacpp_process`); ids, chat
template and stops from its own server (`_llamacpp_server`, or `llama-server`); both on the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from quantize.errors import QuantizeError
from quantize.handed import Host
from quantize.record import Record

if TYPE_CHECKING:
    from quantize.engines._llamacpp_service import LlamaCppService
    from quantize.engines._llamacpp_session import LlamaCppSession

__all__ = ["MODEL_FILE", "LlamaCpp"]

#: The weights in a GGUF checkpoint's directory; the text files of the baseline lie beside it.
MODEL_FILE = "model.gguf"

_MAGIC = b"GGUF"
#: Tokens of context where the recipe names none: what a model was trained on may take more memory than there is.
_CONTEXT = 4096


class LlamaCpp(Record):
    """`n_ctx` is how many tokens a request may have; by default what the model was trained on, at most 4096.

    `n_ubatch` bounds the tokens of one pass. `kv_cache` is the type of the key-value cache: f16 as llama.cpp's server
    has it, or f32. `flash_attention` by default on GPUs only. `gpu_layers` of the model are put on the GPU, -1 for all.
    `server` is what answers when the server is asked: the one that the package xllamacpp carries, or a `llama-server`
    on PATH. For traffic it has `slots` with a context each: so many requests are answered at the same time, more wait.
    """

    kind: Literal["llamacpp"] = "llamacpp"
    form: ClassVar[Literal["checkpoint", "gguf"]] = "gguf"
    hosted: ClassVar[bool] = False
    n_ctx: Annotated[int, Field(ge=32)] | None = None
    n_ubatch: Annotated[int, Field(ge=1)] = 512
    kv_cache: Literal["f16", "f32"] = "f16"
    flash_attention: bool | None = None
    gpu_layers: Annotated[int, Field(ge=-1)] = -1
    server: Literal["xllamacpp", "llama-server"] = "xllamacpp"
    slots: Annotated[int, Field(ge=1)] = 4
    load_seconds: Annotated[float, Field(gt=0)] = 600
    request_seconds: Annotated[float, Field(gt=0)] = 3600

    @property
    def libraries(self) -> tuple[str, ...]:
        """None of ours: what changes a logit is in the environment, whose digest stands in the key."""
        return ()

    def environment(self, device: str) -> str | None:
        """Where llama.cpp is."""
        return "llamacpp"

    def open(self, checkpoint: Path, device: str, host: Host) -> LlamaCppSession:
        """Load `checkpoint`/model.gguf.

        Raises QuantizeError when it is no GGUF file, does not load, or takes llama.cpp down; EngineLost when it is
        killed or does not load within `load_seconds`.
        """
        _model(checkpoint)
        from quantize.engines._llamacpp_session import LlamaCppSession

        return LlamaCppSession(self, checkpoint, device, host)

    def serve(self, checkpoint: Path, device: str, host: Host, draft: Path | None = None) -> LlamaCppService:
        """Start a server for traffic on `checkpoint`/model.gguf and wait until it answers.

        `draft` is a GGUF checkpoint with the same vocabulary. Raises as `open` does; EngineLost where the server has no
        GPU that layers are to be put on.
        """
        from quantize.engines._llamacpp_service import LlamaCppService

        model = _model(checkpoint.absolute())
        return LlamaCppService(self, model, device, host, None if draft is None else _model(draft.absolute()))

    def room(self, trained: int | None) -> int:
        """See `protocols.Engine`."""
        return self.n_ctx or min(_CONTEXT, trained or _CONTEXT)

    def in_other_batches(self) -> LlamaCpp:
        """See `protocols.Engine`: a quarter of the tokens in a pass."""
        return self.model_copy(update={"n_ubatch": max(1, self.n_ubatch // 4)})


def _model(checkpoint: Path) -> Path:
    """The GGUF file of a checkpoint. Raises QuantizeError where there is none."""
    model = checkpoint / MODEL_FILE
    try:
        with model.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise QuantizeError(
            f"there is no GGUF model: {error.strerror}.",
            where=str(model),
            fix="The engine llamacpp loads the format gguf: use the method gguf, or another engine.",
        ) from error
    if magic != _MAGIC:
        raise QuantizeError(f"this is no GGUF file: it begins with {magic!r}.", where=str(model))
    return model
