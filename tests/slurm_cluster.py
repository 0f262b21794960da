"""A cluster of one node by Debian's Slurm (`slurm-wlm`), in a folder: munged, slurmctld and slurmd of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cluster", "lacking"]

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
_SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why there can be no cluster here; None where there can."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed (apt-get install slurm-wlm): no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "Slurm's daemons run as root here"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which Slurm's commands know the cluster, which is gone afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    controller, node = _free_ports()
    settings = _SETTINGS.format(
        host=socket.gethostname().partition(".")[0],
        folder=folder,
        controller=controller,
        node=node,
        cpus=os.cpu_count(),
        megabytes=memory * 9 // 10,
    )
    conf = folder / "slurm.conf"
    conf.write_text(settings, encoding="utf-8")
    variables = {"SLURM_CONF": str(conf)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
    commands = (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"])
    daemons = []
    try:
        for command in commands:
            daemons.append(_daemon(command, folder, variables))
            time.sleep(0.5)
        _wait_for_node(variables, folder)
        yield variables
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _daemon(command: list[str], folder: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{command[0]}.out").open("wb") as log:
        return subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _wait_for_node(variables: dict[str, str], folder: Path, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    said = ""
    while time.monotonic() < end:
        asked = ["sinfo", "--noheader", "--format=%T"]
        told = subprocess.run(asked, env={**os.environ, **variables}, capture_output=True, text=True)
        said = told.stdout + told.stderr
        if told.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.out")))
    raise RuntimeError(f"the node is not idle after {seconds:g} s: {said}\n{logs}")
