"""Handing what was written to the cluster's own command."""

from __future__ import annotations

import shutil
import subprocess

from quantize.errors import MissingDependency, QuantizeError

__all__ = ["apply_manifests", "submit_script"]

_LOGIN_NODE = "Run this where the cluster's commands are (a login node), or write the script with --output FILE there."
_KUBECTL = "Install kubectl and let it know the cluster, or keep what is printed and apply it where kubectl is."


def submit_script(script: str) -> str:
    """Submit a script by sbatch; returns the job's id (`id;cluster` where there are several clusters)."""
    return _hand_over(["sbatch", "--parsable"], script, _LOGIN_NODE)


def apply_manifests(manifests: str) -> str:
    """Apply manifests by kubectl; returns what it says of each."""
    return _hand_over(["kubectl", "apply", "-f", "-"], manifests, _KUBECTL)


def _hand_over(command: list[str], text: str, mend: str) -> str:
    program = shutil.which(command[0])
    if program is None:
        raise MissingDependency(f"there is no {command[0]} on this machine.", where="--submit", fix=mend)
    done = subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or "it says nothing"
        raise QuantizeError(f"{command[0]} refuses ({done.returncode}): {said}", where="--submit")
    return done.stdout.strip()
