"""`python -I _llamacpp_process.py SOCKET OPTIONS`: a GGUF model in llama.cpp that answers over a Unix socket.

Runs in the environment `llamacpp`, as a file: it knows the standard library, numpy and llama_cpp only. llama.cpp writes
what it likes to standard output and error, which are a log; requests and replies have the socket for themselves. A
request is a line of JSON; a reply is a line of JSON, and after it the raw little-endian float32 blocks whose shapes it
gives. The process ends when the socket does. What goes wrong while it answers is a traceback in the log and the end.

Tokens that requests share are computed once: llama.cpp lets a token belong to several sequences, so a tree of tokens
is one batch, in which every leaf has a sequence, and a token those of all leaves behind it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["Model", "main"]

Rows = npt.NDArray[np.float32]
#: (token, position, sequences, whether its output is wanted)
Token = tuple[int, int, Sequence[int], bool]

_CACHES = {"f32": 0, "f16": 1}  # ggml_type
_BYTES_OF_PIECE = 512
_STATES = 8
_DEBUG = 1  # ggml_log_level


class LoadError(Exception):
    """llama.cpp gave no model or no context; its log says why."""


def _log(level: int, text: bytes, _data: Any) -> None:
    """Write what llama.cpp logs, but for what it logs for its own developers: the log's tail is shown to users."""
    if level != _DEBUG:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


class Model:
    """A model with a context of its own.

    `options`: model, n_ctx (0: the model's, at most `n_ctx_most`), n_ubatch, sequences, outputs_bytes, cache,
    flash_attention, gpu_layers, threads.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]

        self.llama: Any = llama_cpp
        llama = self.llama
        self._log = llama.llama_log_callback(_log)  # held as long as it may be called
        llama.llama_log_set(self._log, None)
        llama.llama_backend_init()
        wanted = llama.llama_model_default_params()
        wanted.n_gpu_layers = options["gpu_layers"]
        # Without the layouts that llama.cpp picks by the CPU it meets: answers would depend on it, and where AMX is
        # shown but not allowed, as in some containers, the first prompt of a quantized model is a segmentation fault.
        wanted.use_extra_bufts = False
        if options["gpu_layers"] and not llama.llama_supports_gpu_offload():
            raise LoadError("llama-cpp-python was built without GPU support")
        self.model = llama.llama_model_load_from_file(options["model"].encode(), wanted)
        if not self.model:
            raise LoadError("llama.cpp does not load the model")
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = llama.llama_model_n_embd_out(self.model)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self.model)
        self.n_ctx: int = options["n_ctx"] or min(self.n_ctx_train, options["n_ctx_most"])
        #: Tokens whose outputs are held at a time.
        self.outputs = max(1, min(self.n_ctx, options["outputs_bytes"] // (4 * self.n_vocab)))
        #: Whether what it keeps of a prompt is a state, which tokens of several sequences cannot share.
        self.keeps_state = bool(llama.llama_model_is_recurrent(self.model) or llama.llama_model_is_hybrid(self.model))
        # Every sequence's state is allocated at the start.
        self.sequences: int = min(options["sequences"], _STATES) if self.keeps_state else options["sequences"]
        self.n_ubatch: int = min(options["n_ubatch"], self.n_ctx)
        self.context = llama.llama_init_from_model(self.model, self._context(options))
        if not self.context:
            raise LoadError("llama.cpp makes no context")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(self.n_ctx, 0, self.sequences)

    def _context(self, options: dict[str, Any]) -> Any:
        wanted = self.llama.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = self.n_ctx
        wanted.n_ubatch = self.n_ubatch
        wanted.n_seq_max = self.sequences
        wanted.kv_unified = True  # all sequences of a tree look into one cache
        wanted.swa_full = True  # and may be anywhere in it
        wanted.type_k = wanted.type_v = _CACHES[options["cache"]]
        wanted.flash_attn_type = 1 if options["flash_attention"] else 0
        wanted.pooling_type = self.llama.LLAMA_POOLING_TYPE_NONE
        wanted.no_perf = True
        wanted.n_threads = wanted.n_threads_batch = options["threads"]
        return wanted

    def facts(self) -> dict[str, Any]:
        """What the other side must know. `shares`: whether a token may belong to several sequences."""
        text = ctypes.create_string_buffer(256)
        self.llama.llama_model_desc(self.model, text, 256)
        return {
            "pid": os.getpid(),
            "description": text.value.decode(errors="replace"),
            "size": self.llama.llama_model_size(self.model),
            "file_type": self.llama.llama_model_ftype(self.model),
            "n_vocab": self.n_vocab,
            "n_embd": self.n_embd,
            "n_ctx": self.n_ctx,
            "n_ctx_train": self.n_ctx_train,
            "outputs": self.outputs,
            "sequences": self.sequences,
            "shares": not self.keeps_state,
        }

    def forget(self) -> None:
        """Empty the cache."""
        self.llama.llama_memory_clear(self.memory, False)

    def decode(self, tokens: Sequence[Token]) -> None:
        """Run one batch; outputs are there until the next. The cache stays."""
        batch = self.batch
        for place, (token, position, sequences, wanted) in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = len(sequences)
            own = batch.seq_id[place]
            for number, sequence in enumerate(sequences):
                own[number] = sequence
            batch.logits[place] = wanted
        batch.n_tokens = len(tokens)
        status = self.llama.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} for {len(tokens)} tokens")

    def logits(self, place: int) -> Rows:
        """Of the token at `place` of the last batch (vocabulary): a view, good until the next batch."""
        pointer = self.llama.llama_get_logits_ith(self.context, place)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def embedding(self, place: int) -> Rows:
        """What the output matrix is given at `place` of the last batch (embedding): a view."""
        pointer = self.llama.llama_get_embeddings_ith(self.context, place)
        return np.ctypeslib.as_array(pointer, shape=(self.n_embd,))

    def piece(self, token: int) -> bytes:
        """A token's bytes, special tokens spelled out."""
        text = ctypes.create_string_buffer(_BYTES_OF_PIECE)
        size = self.llama.llama_token_to_piece(self.vocab, token, text, _BYTES_OF_PIECE, 0, True)
        return text.raw[:size] if size > 0 else b""

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self.llama.llama_vocab_is_eog(self.vocab, token))


def score(model: Model, trees: list[dict[str, Any]]) -> list[list[float | bool | None]]:
    """By request: number, sum of log-probabilities in float64 (None for NaN), whether each token is the likeliest."""
    answers: list[list[float | bool | None]] = []
    for tree in trees:
        looks, places = set(tree["looks"]), tree["looks"]
        own = _sequences(tree["parents"])
        rows = zip(tree["tokens"], tree["depths"], own, strict=True)
        model.forget()
        model.decode([(token, depth, mine, at in looks) for at, (token, depth, mine) in enumerate(rows)])
        known: dict[int, tuple[Rows, float, int]] = {}
        for number, choice, after in tree["asked"]:
            total, greedy = 0.0, True
            for token, look in zip(choice, after, strict=True):
                if look not in known:
                    logits = model.logits(places[look])
                    known[look] = (logits, _log_sum(logits), int(logits.argmax()))
                logits, norm, best = known[look]
                total += float(logits[token]) - norm
                greedy = greedy and best == token
            answers.append([number, total if np.isfinite(total) else None, greedy])
    return answers


def _log_sum(logits: Rows) -> float:
    """Log of the summed exponentials, in float64; NaN where a logit is not finite."""
    exact = logits.astype(np.float64)
    top = exact.max()
    if not np.isfinite(exact.sum()):
        return float("nan")
    return float(top + np.log(np.exp(exact - top).sum()))


def _sequences(parents: list[int]) -> list[list[int]]:
    """Sequences that each token of a tree belongs to: every leaf has one."""
    inner = set(parents)
    own: list[list[int]] = [[] for _ in parents]
    leaves = [place for place in range(len(parents)) if place not in inner]
    for sequence, leaf in enumerate(leaves):
        place = leaf
        while place >= 0:
            own[place].append(sequence)
            place = parents[place]
    return own


def read(model: Model, windows: list[list[int]], last: int, *, embeddings: bool) -> Iterator[Rows]:
    """Outputs of each window's last `last` tokens (all where it is 0), one block a window."""
    model.llama.llama_set_embeddings(model.context, embeddings)
    output = model.embedding if embeddings else model.logits
    try:
        for ids in windows:
            model.forget()
            first = max(0, len(ids) - last) if last else 0
            block = np.empty((len(ids) - first, model.n_embd if embeddings else model.n_vocab), np.float32)
            for start in range(0, len(ids), model.outputs):
                piece = ids[start : start + model.outputs]
                model.decode([(token, start + at, (0,), start + at >= first) for at, token in enumerate(piece)])
                for at in range(max(start, first), start + len(piece)):
                    block[at - first] = output(at - start)
            yield block
    finally:
        model.llama.llama_set_embeddings(model.context, False)


def complete(model: Model, prompts: list[list[int]], options: dict[str, Any]) -> tuple[list[list[int]], bool]:
    """Answers' ids without what ends them, and whether all logits were finite. See `Asked.complete`."""
    answers: list[list[int]] = [[] for _ in prompts]
    finite = True
    waiting = list(range(len(prompts)))
    while waiting:
        together: list[int] = []
        cells = 0
        while waiting and len(together) < options["parallel"]:
            cells += len(prompts[waiting[0]]) + options["max_tokens"]
            if together and cells > model.n_ctx:
                break
            together.append(waiting.pop(0))
        finite = _complete(model, prompts, together, answers, options) and finite
    return answers, finite


def _complete(
    model: Model, prompts: list[list[int]], together: list[int], answers: list[list[int]], options: dict[str, Any]
) -> bool:
    """Fill the answers of some prompts at once, each in a sequence of its own."""
    stops = [stop.encode() for stop in options["stops"]]
    draws = {number: np.random.default_rng(options["seed"] + number) for number in together}
    texts = dict.fromkeys(together, b"")
    finite = True
    model.forget()
    last: dict[int, Rows] = {}
    for sequence, number in enumerate(together):
        ids = prompts[number]
        for start in range(0, len(ids), model.n_ubatch):
            piece = ids[start : start + model.n_ubatch]
            model.decode([(t, start + at, (sequence,), start + at == len(ids) - 1) for at, t in enumerate(piece)])
        last[number] = model.logits(len(piece) - 1).copy()
    while last:
        batch: list[Token] = []
        alive = []
        for sequence, number in enumerate(together):
            if number not in last:
                continue
            finite = finite and bool(np.isfinite(last[number]).all())
            token = _sample(last[number], options["temperature"], options["top_p"], draws[number])
            if model.ends(token):
                continue
            answers[number].append(token)
            texts[number] += model.piece(token)
            full = len(answers[number]) >= options["max_tokens"]
            if full or any(stop in texts[number] for stop in stops):
                continue
            position = len(prompts[number]) + len(answers[number]) - 1
            batch.append((token, position, (sequence,), True))
            alive.append(number)
        if batch:
            model.decode(batch)
        last = {number: model.logits(place) for place, number in enumerate(alive)}
    return finite


def _sample(logits: Rows, temperature: float, top_p: float, draw: np.random.Generator) -> int:
    """The likeliest token at temperature 0; else one of the fewest that hold `top_p` of the probability."""
    if temperature <= 0 or not np.isfinite(logits).all():
        return int(np.nanargmax(logits)) if not np.isnan(logits).all() else 0
    exact = logits.astype(np.float64) / temperature
    order = np.argsort(-exact, kind="stable")
    shares = np.exp(exact[order] - exact[order[0]])
    shares /= shares.sum()
    # A token belongs to them while what stands before it holds less than `top_p`.
    shares[1:][np.cumsum(shares)[:-1] >= top_p] = 0
    return int(order[draw.choice(len(order), p=shares / shares.sum())])


def answer(model: Model, request: dict[str, Any], stream: BinaryIO) -> None:
    """Answer one request."""
    if request["do"] == "score":
        _say(stream, {"scores": score(model, request["trees"])})
    elif request["do"] == "complete":
        answers, finite = complete(model, request["prompts"], request["options"])
        _say(stream, {"answers": answers, "finite": finite})
    elif request["do"] == "read":
        embeddings, last, windows = request["embeddings"], request["last"], request["windows"]
        width = model.n_embd if embeddings else model.n_vocab
        _say(stream, {"blocks": [[min(last or len(ids), len(ids)), width] for ids in windows]})
        blocks = read(model, windows, last, embeddings=embeddings)
        stream.writelines(block.astype("<f4", copy=False).tobytes() for block in blocks)
        stream.flush()
    else:
        raise ValueError(f"unknown request {request['do']!r}")


def _say(stream: BinaryIO, reply: dict[str, Any]) -> None:
    stream.write(json.dumps(reply).encode() + b"\n")
    stream.flush()


def main(address: str, options: dict[str, Any]) -> int:
    """Load, say what was loaded, answer until the socket ends. Whoever waits for the connection waits for the load."""
    faulthandler.enable()
    model: Model | None = None
    try:
        model = Model(options)
        facts: dict[str, Any] = {"facts": model.facts()}
    except LoadError as error:
        facts = {"error": str(error)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        stream: Any = connection.makefile("rwb", buffering=1 << 20)
        _say(stream, facts)
        if model is None:
            return 1
        for line in stream:
            answer(model, json.loads(line), stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
