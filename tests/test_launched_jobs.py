"""Jobs that run: the script of `quantize launch slurm` under bash, and on a cluster of one node by Debian's Slurm.

Where the cluster's own commands are not the point, small executables stand in their place and write down how they were
called. The program is the real one: the console script of this environment.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm_cluster
from program import command, tiny_recipe, write_recipe

PROGRAMS = Path(sys.executable).parent
ANSWER = 'printf "%s\\n" "$*" >> "$CALLS"; [ "$1" != show ] || echo "JobId=7 JobState=$STATE"'


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{seconds:g} s are over, and not yet: {what}"
        time.sleep(0.1)


def started(store: Path) -> bool:
    """Whether a run is at work on a store: it has the lease of a stage."""
    return any((store / "leases").glob("*")) if (store / "leases").is_dir() else False


@pytest.fixture
def script(tmp_path) -> str:
    done = command("launch", "slurm", write_recipe(tmp_path, tiny_recipe()), "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def node(tmp_path, script) -> Callable[..., subprocess.Popen[str]]:
    """The script at work as on a node: bash, the real program on PATH, and a `scontrol` that writes down its calls."""
    commands = tmp_path / "commands"
    commands.mkdir()
    scontrol = commands / "scontrol"
    scontrol.write_text(f"#!/bin/bash\n{ANSWER}\n", encoding="utf-8")
    scontrol.chmod(0o755)
    (tmp_path / "job.sh").write_text(script, encoding="utf-8")

    def start(state: str = "RUNNING", **variables: str) -> subprocess.Popen[str]:
        own = {"CALLS": str(tmp_path / "calls"), "STATE": state, "SLURM_JOB_ID": "7"}
        path = f"{commands}:{PROGRAMS}:/usr/bin:/bin"
        return subprocess.Popen(
            ["bash", str(tmp_path / "job.sh")],
            env={**os.environ, **own, "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.mark.slow
def test_a_signal_to_the_shell_stops_the_program_which_goes_back_into_the_queue_and_goes_on(node, tmp_path):
    job = node()
    wait_until(lambda: started(tmp_path / "store"), "the program works")
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 75, told
    assert "stopped by a signal" in told
    assert calls(tmp_path) == ["show job 7 --oneliner", "requeue 7"]
    out, told = node(SLURM_RESTART_COUNT="1").communicate(timeout=240)
    assert "promoted" in out, told
    assert calls(tmp_path)[2:] == []


def test_a_signal_before_the_program_listens_loses_nothing(node, tmp_path):
    job = node()
    wait_until(lambda: children(job.pid), "the program was started")
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 75
    assert calls(tmp_path)[-1] == "requeue 7"


@pytest.mark.parametrize(("state", "restarts"), [("COMPLETING", "0"), ("CANCELLED", "0"), ("RUNNING", "100")])
def test_a_job_that_was_taken_away_or_gets_nowhere_is_not_put_back(node, tmp_path, state, restarts):
    job = node(state, SLURM_RESTART_COUNT=restarts)
    wait_until(lambda: children(job.pid), "the program was started")
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 75 and "submit it again" in told
    assert not any(call.startswith("requeue") for call in calls(tmp_path))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 75])
def test_the_program_s_code_is_the_job_s_and_75_alone_goes_back(node, tmp_path, code):
    """Here a program that ends at once stands in quantize's place: each of its codes, without the work behind it."""
    stand_in = tmp_path / "commands" / "quantize"
    stand_in.write_text(f"#!/bin/bash\nexit {code}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    job = node()
    job.communicate(timeout=60)
    assert job.returncode == code
    assert ("requeue 7" in calls(tmp_path)) == (code == 75)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()


# --- a cluster of one node


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> dict[str, str]:
    reason = slurm_cluster.lacking()
    if reason is not None:
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def ask(slurm, tmp_path) -> Callable[..., str]:
    def run(*words: str) -> str:
        everything = {**os.environ, **slurm}
        done = subprocess.run(words, env=everything, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def submitted(ask, tmp_path) -> str:
    """A job of the tiny recipe that works."""
    recipe, store = write_recipe(tmp_path, tiny_recipe()), tmp_path / "store"
    words = ("launch", "slurm", str(recipe), "--store", str(store), "--cpus", "1", "--memory-gb", "2", "--submit")
    job = ask(str(PROGRAMS / "quantize"), *words)
    assert job.isdecimal()
    wait_until(lambda: started(store), "the job works")
    return job


def state_of(ask: Callable[..., str], job: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in ask("scontrol", "show", "job", job, "--oneliner").split() if "=" in word)


@pytest.mark.slow
def test_slurm_puts_a_job_back_that_was_told_to_stop_and_its_second_run_decides(ask, submitted, tmp_path):
    assert state_of(ask, submitted)["Requeue"] == "1"
    ask("scancel", "--signal=TERM", "--batch", submitted)  # what Slurm sends two minutes before the limit
    wait_until(lambda: state_of(ask, submitted)["JobState"] == "PENDING", "the job is back in the queue")
    assert state_of(ask, submitted)["Restarts"] == "1"
    ask(
        "scontrol", "update", f"JobId={submitted}", "StartTime=now"
    )  # Slurm waits two minutes before it starts it again
    wait_until(lambda: state_of(ask, submitted)["JobState"] in ("COMPLETED", "FAILED"), "the job has ended", 240)
    log = "".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
    assert state_of(ask, submitted)["ExitCode"] == "0:0", log
    assert "stopped by a signal" in log and "promoted" in log  # one file for both


@pytest.mark.slow
def test_slurm_does_not_put_back_what_a_person_cancelled(ask, submitted, tmp_path):
    ask("scancel", submitted)
    wait_until(lambda: state_of(ask, submitted)["JobState"] == "CANCELLED", "the job is cancelled", 60)
    time.sleep(3)  # longer than Slurm takes to put a job back
    assert (state_of(ask, submitted)["JobState"], state_of(ask, submitted)["Restarts"]) == ("CANCELLED", "0")


@pytest.mark.slow
def test_slurm_never_runs_two_jobs_of_one_recipe_at_once(ask, submitted, tmp_path):
    recipe, store = tmp_path / "recipe.yaml", tmp_path / "store"
    words = ("launch", "slurm", str(recipe), "--store", str(store), "--cpus", "1", "--memory-gb", "2", "--submit")
    second = ask(str(PROGRAMS / "quantize"), *words)
    wait_until(lambda: state_of(ask, second)["Reason"] == "Dependency", "the second job waits for the first", 30)
    ask("scancel", submitted, second)
