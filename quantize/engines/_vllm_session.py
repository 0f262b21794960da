"""A checkpoint that vLLM's server answers for.

Imported only by functions that open the engine.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from quantize.engines import _vllm_asked as asked
from quantize.engines._processes import gpu_bytes, gpu_name
from quantize.engines._vllm_client import COMPLETIONS, Client
from quantize.engines._vllm_start import start_server
from quantize.errors import QuantizeError
from quantize.handed import Host, Top

if TYPE_CHECKING:
    from quantize.engines.vllm import Vllm

__all__ = ["VllmSession"]


class VllmSession:
    """See `handed.Session`. `config` is the checkpoint's own."""

    distributions: ClassVar[Literal["full", "top"]] = "top"

    def __init__(self, engine: Vllm, checkpoint: Path, config: dict[str, Any], device: str, host: Host) -> None:
        from transformers import AutoTokenizer

        self.arithmetic = engine.arithmetic(config, device)
        self.vocabulary = int(config["vocab_size"])
        self._checkpoint = checkpoint
        self._on_gpu = device != "cpu"
        self._lm: Any = None
        self._most, beyond = engine.context(config)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        # One token more than a prompt may have: the server always generates one.
        self._server = start_server(engine, checkpoint, config, device, host, length=self._most + 1, beyond=beyond)
        self._client = Client(self._server, engine.max_num_seqs, engine.request_seconds)
        try:
            self._server.ready(engine.load_seconds)
            # Ready only says that the weights are loaded. A kernel that this machine lacks shows with the first pass.
            self._client.ask(COMPLETIONS, asked.after([0], [0]))
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> str:
        """Device class and name."""
        if self._on_gpu:
            return f"cuda {gpu_name()}"
        return f"cpu {platform.processor() or platform.machine()}"

    def lm(self) -> Any:
        """The server as lm-eval sees it."""
        if self._lm is None:
            from quantize.engines._asked import AskedLM

            self._lm = AskedLM(asked.VllmAsked(self._client, self._tokenizer, self._most), self._tokenizer)
        return self._lm

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without special tokens, by the checkpoint's tokenizer."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def log_probabilities(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """See `handed.Session`. One request per position: asked for by name, every token gets its number."""
        prompt = self._fitting(ids)
        bodies, owners = [], []
        for row, tokens in enumerate(kept.tolist()):
            end = len(prompt) - len(kept) + row + 1
            unique = sorted(set(tokens))
            for start in range(0, len(unique), asked.NAMED):
                bodies.append(asked.after(prompt[:end], unique[start : start + asked.NAMED]))
                owners.append(row)
        found: list[dict[int, float]] = [{} for _ in kept]
        lost = set()
        for row, answer in zip(owners, self._client.ask_all(COMPLETIONS, bodies), strict=True):
            values = {} if answer is None else asked.read(answer)[1]
            if not values or not all(map(asked.said, values.values())):
                lost.add(row)
            found[row] |= values
        rows = [
            [torch.nan] * len(tokens) if row in lost else [found[row][token] for token in tokens]
            for row, tokens in enumerate(kept.tolist())
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(kept.shape)

    def top(self, windows: Sequence[torch.Tensor], k: int) -> list[Top]:
        """See `handed.Session`. Raises QuantizeError where more are asked for than the server gives."""
        if k > asked.MOST:
            raise QuantizeError(f"vLLM's server gives the {asked.MOST} likeliest tokens, not {k}.")
        k = min(k, self.vocabulary)
        prompts = [self._fitting(window) for window in windows]
        long = [number for number, prompt in enumerate(prompts) if len(prompt) > 1]
        bodies = [
            {**asked.NEUTRAL, "prompt": prompts[number], "max_tokens": 1, "prompt_logprobs": k} for number in long
        ]
        answers = dict(zip(long, self._client.ask_all(COMPLETIONS, bodies), strict=True))
        return [
            _top(prompt, answers[number], k) if number in answers else _nothing(0, k)
            for number, prompt in enumerate(prompts)
        ]

    def tokenize(self, text: str) -> list[int]:
        """See `handed.Session`: as the server treats a completion's prompt."""
        return self._tokens({"prompt": text})

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """See `handed.Session`: as the server treats a chat completion's messages."""
        return self._tokens({"messages": messages, "add_generation_prompt": True})

    def stops(self, ids: list[int], token: int) -> bool:
        """See `handed.Session`. No other token is allowed, which forces more surely than any bias."""
        body = {
            **asked.NEUTRAL,
            "prompt": ids,
            "max_tokens": 3,
            "allowed_token_ids": [token],
            "return_token_ids": True,
        }
        answer = self._client.ask(COMPLETIONS, body)
        if answer is None:
            return False
        first = answer["choices"][0]
        return bool(first["finish_reason"] == "stop" and first["token_ids"] == [token])

    def memory(self) -> dict[str, int]:
        """See `handed.Session`: on GPUs what the driver says that the server's processes hold."""
        if not self._on_gpu:
            return {"peak": self._server.peak()}
        weights, held = self._server.weights(), gpu_bytes(self._server.processes())
        return {
            **({} if weights is None else {"weights": weights}),
            **({} if held is None else {"peak": held}),
        }

    def metrics(self) -> dict[str, float]:
        """The server's own counters by name, summed over their labels."""
        found: dict[str, float] = {}
        for line in self._client.read("/metrics").splitlines():
            if not line.startswith("#") and line:
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def close(self) -> None:
        """End the server."""
        self._lm = None
        self._server.close()
        self._client.close()

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        answer = self._client.ask("/tokenize", body)
        return [] if answer is None else list(answer["tokens"])

    def _fitting(self, ids: torch.Tensor) -> list[int]:
        if len(ids) > self._most:
            raise QuantizeError(
                f"a text of {len(ids)} tokens is longer than the {self._most} that the engine reads.",
                where=str(self._checkpoint),
                fix="Raise the engine's max_model_len, or ask for shorter windows.",
            )
        return [int(token) for token in ids.tolist()]


def _top(prompt: list[int], answer: dict[str, Any] | None, k: int) -> Top:
    """From the log-probabilities of a prompt: at each position the k likeliest tokens, and the one that is there."""
    if answer is None:
        return _nothing(len(prompt) - 1, k)
    true, ids, values = [], [], []
    for token, entry in zip(prompt[1:], answer["choices"][0]["prompt_logprobs"][1:], strict=True):
        true.append(_number(entry[str(token)]["logprob"]))
        # The one that is there comes along when it is not among the likeliest.
        best = sorted(((one["logprob"], int(name)) for name, one in entry.items()), key=lambda one: -one[0])[:k]
        values.append([_number(value) for value, _ in best])
        ids.append([name for _, name in best])
    return Top(torch.tensor(true, dtype=torch.float64), torch.tensor(ids), torch.tensor(values, dtype=torch.float64))


def _number(value: float) -> float:
    """A log-probability as the server gives it; NaN where it stands for a logit of minus infinity."""
    return value if asked.said(value) else torch.nan


def _nothing(positions: int, k: int) -> Top:
    """NaN everywhere: of a text in which a logit was not finite, the server says nothing."""
    return Top(
        torch.full((positions,), torch.nan, dtype=torch.float64),
        torch.zeros((positions, k), dtype=torch.int64),
        torch.full((positions, k), torch.nan, dtype=torch.float64),
    )
