"""A script for `sbatch`: it runs a recipe, passes a signal on, and puts the job back into the queue on 75.

    before the time limit   Slurm tells the shell (TERM), the shell the program, which saves and ends with 75
    75                      `scontrol requeue`: the same job, from where it stopped
    cancelled by a person   ends: a job that Slurm no longer calls RUNNING is not put back
    any other code          is the job's own

Two jobs of one name and user never run at once (`singleton`). Nothing of the environment is written into the script:
sbatch hands the variables of whoever submits to the job.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from quantize.launching.asked import Asked
from quantize.launching.naming import job_name
from quantize.launching.times import TOLD_BEFORE, slurm_time

__all__ = ["SlurmJob", "sbatch_script", "scrontab_entry"]

#: How often a job goes back into the queue, at most: one that gets nowhere must end some day.
_RESTARTS = 100

_BODY = """
# What the exit codes say. 0: everything decided as the recipe wants it, or nothing new. 3 (a variant was rejected) and
# 4 (not enough evidence) are decisions, not failures, although Slurm lists such a job as FAILED. 1: an error. 2: the
# recipe or the command is wrong. 75: stopped, and the same command goes on from there.
set -u
cd -- {directory} || exit 1
# What is on the PATH counts; else the programs beside the one that wrote this.
PATH="${{PATH:-/usr/bin:/bin}}":{programs}
export PATH
if ! command -v quantize >/dev/null; then
    echo "quantize is not on this node: activate its environment before sbatch, or put it where all nodes see it." >&2
    exit 127
fi

# The program runs in the background, because a shell that waits in the foreground answers no signal.
program=""
told=""
tell() {{
    told=now
    if [ -n "$program" ]; then kill -TERM "$program" 2>/dev/null; fi
}}
trap tell TERM INT

{command} &
program=$!
if [ -n "$told" ]; then tell; fi
wait "$program"
code=$?
# A signal ends `wait` and not the program: wait again.
while [ "$told" = now ]; do
    told=before
    wait "$program"
    code=$?
done
# It was told before it could listen: nothing is lost.
if [ -n "$told" ] && [ "$code" -eq 143 ]; then code=75; fi

if [ "$code" -eq 75 ] && [ -n "${{SLURM_JOB_ID:-}}" ]; then
    # Slurm is ending the job itself unless it is RUNNING: cancelled by a person, or preempted and requeued by Slurm.
    case "$(scontrol show job "$SLURM_JOB_ID" --oneliner)" in
    *JobState=RUNNING*)
        if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
            echo "stopped {restarts} times already: look why, then submit it again." >&2
        else
            scontrol requeue "$SLURM_JOB_ID" || echo "not requeued: submit it again to go on." >&2
        fi
        ;;
    *) echo "not requeued, because the job was no longer running: submit it again to go on." >&2 ;;
    esac
fi
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """One job. `recipe`, `store` and `directory` (where relative paths start) are absolute; `seconds` is its limit.

    `programs` is the folder of the program that writes the script.
    """

    name: str
    recipe: Path
    store: Path
    directory: Path
    programs: Path
    overrides: tuple[str, ...]
    asked: Asked
    seconds: int
    partition: str | None = None
    account: str | None = None


def sbatch_script(job: SlurmJob) -> str:
    """The script, with its `#SBATCH` lines."""
    options = [
        f"--job-name={job_name(job.name)}",
        f"--time={slurm_time(job.seconds)}",
        f"--signal=B:TERM@{TOLD_BEFORE}",
        "--requeue",
        "--open-mode=append",
        "--dependency=singleton",
        "--nodes=1",
        "--ntasks=1",
    ]
    options += [f"--gres=gpu:{job.asked.gpus}"] if job.asked.gpus else []
    options += [f"--cpus-per-task={job.asked.cpus}"] if job.asked.cpus is not None else []
    options += [f"--mem={math.ceil(job.asked.memory_gb * 1e9 / 2**20)}M"] if job.asked.memory_gb is not None else []
    options += [f"--partition={job.partition}"] if job.partition is not None else []
    options += [f"--account={job.account}"] if job.account is not None else []
    sets = [part for override in job.overrides for part in ("--set", override)]
    command = ["quantize", "run", str(job.recipe), "--store", str(job.store), *sets]
    body = _BODY.format(
        directory=shlex.quote(str(job.directory)),
        programs=shlex.quote(str(job.programs)),
        command=shlex.join(command),
        restarts=_RESTARTS,
    )
    return "\n".join(("#!/bin/bash", *(f"#SBATCH {option}" for option in options), body))


def scrontab_entry(job: SlurmJob, script: Path, schedule: str) -> str:
    """Lines for `scrontab -e`: at each tick a small job submits the script, unless its last job is still there."""
    name = job_name(job.name)
    options = [f"--job-name={name}-tick", "--time=00:05:00"]
    options += [f"--partition={job.partition}"] if job.partition is not None else []
    options += [f"--account={job.account}"] if job.account is not None else []
    waiting = f'[ -n "$(squeue --me --noheader --name={name})" ]'
    return f"#SCRON {' '.join(options)}\n{schedule} {waiting} || sbatch {shlex.quote(str(script))}\n"
