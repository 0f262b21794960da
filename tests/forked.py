"""Processes forked from one that has imported the program and its libraries, and has used MLflow once.

A process that starts from nothing needs a second before it reads its first argument, several before it asks MLflow its
first question, and more before its first stage has torch; the tests start hundreds. What they fork is the program in
all else; that it starts from nothing just as well is for tests that use `program.start`, and for the slow ones.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

__all__ = ["forkserver", "import_libraries", "run_program", "use_mlflow"]

_IMPORTS = "forked_imports"


@cache
def forkserver() -> ForkServerContext:
    """The context to start processes with. There is one server a session, so its modules are named here alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_IMPORTS])
    with _importing_tests():
        process = context.Process(target=_nothing)
        process.start()
        process.join()
    return context


def import_libraries() -> None:
    """What workers import, with the variables that they have."""
    from quantize import forkserver
    from quantize.executors import local

    os.environ.update({**local._QUIET, **local._THREADS, **local._OFFLINE})
    for name in forkserver._IMPORTED:
        importlib.import_module(name)


def use_mlflow() -> None:
    """Once, on a database that is thrown away; its client is forgotten with it."""
    from quantize.registries import Mlflow, _client

    with tempfile.TemporaryDirectory() as scratch:
        registry = Mlflow(name="warm", uri=f"sqlite:///{scratch}/mlflow.db")
        registry.end_run(registry.start_run("warm", None, {}), "FINISHED")
        registry.prepare()
        registry.append("text", "digest")
        registry.entries(0)
    _client._clients.clear()


def run_program(arguments: list[str], environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """The program with these arguments, as `subprocess.run` would: exit code or signal, what it wrote to 1 and to 2."""
    with tempfile.TemporaryDirectory() as scratch:
        written = [Path(scratch) / "1", Path(scratch) / "2"]
        for path in written:
            path.touch()
        process = forkserver().Process(target=_become, args=(arguments, environment, Path.cwd(), written))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, seconds)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in written)
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _become(arguments: list[str], environment: dict[str, str], folder: Path, written: list[Path]) -> None:
    """In the new process: be `quantize ARGUMENTS` in that folder, with that environment."""
    from quantize.cli import main
    from quantize.executors import _workers

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(written, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = ["quantize", *arguments]
    _workers.start_server = _fork_server
    try:
        main()
    finally:
        # Such a process ends without what a program of its own does at its end.
        atexit._run_exitfuncs()


class _ServerOfWorkers:
    """As much of `subprocess.Popen` as the program needs of the process that forks its workers."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def wait(self) -> None:
        os.waitpid(self._pid, 0)


def _fork_server(driver: int, environment: Mapping[str, str]) -> _ServerOfWorkers:
    """See `quantize.executors._workers.start_server`: everything is imported already."""
    from quantize.forkserver import main

    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return _ServerOfWorkers(pid)
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        os.closerange(3, driver)
        os.closerange(driver + 1, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(environment)
        code = main([str(driver)])
    except SystemExit as ended:  # a worker
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _nothing() -> None:
    """So that the server starts."""


@contextmanager
def _importing_tests() -> Iterator[None]:
    """The server starts with `PYTHONPATH` alone, and leaves out without a word what it cannot import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
