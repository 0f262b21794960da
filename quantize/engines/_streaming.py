"""`python -m quantize.engines._streaming READY OPTIONS`: a model in transformers behind OpenAI's completions protocol.

A server to measure by, not to serve with: greedy, and one request at a time, those that wait in the order they came.
Once it answers it writes where it listens into the file READY, or why it does not, and serves until it is ended.

Requests are read by threads that then sleep. One thread, the main one, answers them and writes every token itself, so
that no token waits for another thread's turn, and torch has one team of threads.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from quantize.engines._completions import Asked, Refused, Server, Wanted
from quantize.engines._timing import answer, context, kv_bytes
from quantize.engines.transformers import Transformers, TransformersSession
from quantize.errors import EngineLost, QuantizeError

__all__ = ["KEY_VARIABLE", "Answers", "Pieces", "main"]

#: The environment's variable that holds the key: only its owner can read a process's environment.
KEY_VARIABLE = "QUANTIZE_SERVER_KEY"
#: The context of a model that says nothing of its own.
_CONTEXT = 4096
#: What a decoder writes where a token ends within a character.
_HALF = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """The text of tokens as they come. What ends within a character waits for the rest of it.

    Special tokens have no text. A piece is decoded together with the one before it, since tokenizers join them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._waiting: list[int] = []

    def add(self, token: int, *, last: bool) -> str:
        """What this token adds to the text."""
        self._waiting.append(token)
        known = self._text(self._before)
        text = self._text(self._before + self._waiting)[len(known) :]
        if text.endswith(_HALF) and not last:
            return ""
        self._before, self._waiting = self._waiting, []
        return text

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Answers:
    """Answers requests by one model, one after the other."""

    def __init__(self, session: TransformersSession) -> None:
        self._session = session
        self.context = context(session.model) or _CONTEXT
        ends = session.model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        self._kv = kv_bytes(session.model)
        # The first pass is a slow one, and one that fails is no reason to wait for a request.
        answer(session.greedy(), torch.zeros((1, 4), dtype=torch.int64), 3)

    def encode(self, want: Wanted) -> list[int]:
        """Token ids of a prompt. Raises Refused."""
        if want.messages is not None:
            try:
                found = self._session.chat(want.messages)
            except QuantizeError as error:
                raise Refused(400, str(error)) from error
        elif isinstance(want.prompt, str):
            found = self._session.tokenize(want.prompt)
        else:
            found = want.prompt or []
            if any(token >= self._session.vocabulary for token in found):
                raise Refused(400, f"there are {self._session.vocabulary} tokens, and the prompt has {max(found)}.")
        if not found:
            raise Refused(400, "the prompt has no tokens.")
        return found

    def state(self) -> dict[str, Any]:
        """What the service tells of itself."""
        from importlib.metadata import version

        own = {"version": version("transformers"), "kv_bytes_per_token": str(self._kv)}
        return {"memory": self._session.memory(), "facts": {**self._session.facts(), **own}}

    def answer(self, asked: Asked) -> None:
        """Answer a request, as long as its client is there. Whatever goes wrong is its own and ends nothing else."""
        try:
            with suppress(OSError):  # the client has gone
                self._stream(asked)
        except Exception as error:  # noqa: BLE001  a kernel raises what it likes
            traceback.print_exc()
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            self._fail(asked, f"{type(error).__name__}: {error}")
        finally:
            self._session.greedy().end()
            asked.done.set()

    def _stream(self, asked: Asked) -> None:
        want, reply, greedy = asked.wanted, asked.reply, self._session.greedy()
        if reply.gone():
            return
        pieces = Pieces(self._session.tokenizer)
        with torch.inference_mode():
            greedy.prepare(1, len(asked.prompt) + want.max_tokens - 1)
            token = int(greedy.begin(torch.tensor([asked.prompt], device=self._session.model.device)))
            for place in range(1, want.max_tokens + 1):
                ended = token in self._ends and not want.ignore_eos
                finish = "stop" if ended else "length" if place == want.max_tokens else None
                reply.token(pieces.add(token, last=finish is not None), finish)
                if finish is not None:
                    reply.end()
                    return
                if reply.gone():
                    return
                token = int(greedy.step())

    @staticmethod
    def _fail(asked: Asked, message: str) -> None:
        with suppress(OSError):
            asked.reply.fail(message)


def main(ready: Path, options: dict[str, Any]) -> int:
    """`options`: checkpoint, device, engine, threads (None: as torch has it), name of the model."""
    key = os.environ.pop(KEY_VARIABLE)
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    try:
        engine = Transformers.model_validate(options["engine"])
        answers = Answers(engine.open(Path(options["checkpoint"]), options["device"]))
    except QuantizeError as error:
        lost = isinstance(error, EngineLost)
        _write(ready, {"error": error.what, "where": error.where, "fix": error.fix, "lost": lost})
        return 1
    server = Server(options["name"], key, answers.context, answers.encode, answers.state)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _write(ready, {"port": server.server_address[1], "context": answers.context})
    while True:
        answers.answer(server.asked.get())


def _write(ready: Path, said: dict[str, Any]) -> None:
    draft = ready.with_suffix(".new")
    draft.write_text(json.dumps(said), encoding="utf-8")
    draft.replace(ready)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
