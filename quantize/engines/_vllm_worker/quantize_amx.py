"""Where vLLM does not run on CPUs with AMX, although every kernel that it takes there would.

Symptom: the server starts, and its worker dies of SIGILL with the first request (`Worker proc VllmWorker-0 died
unexpectedly`), for W8A8 and 4-bit weights in bfloat16 on a CPU with `amx_tile`. Linux gives a process the tile
registers only when it asks for them (arch_prctl, ARCH_REQ_XCOMP_PERM), and the permission does not outlive an exec.
vLLM's own kernels never ask. Where it works, somebody else has asked before in the same process: torch's inductor,
when it looks for the CPU's instruction sets. So a server that compiles is well, and one with `--enforce-eager` is not.

Seen in vLLM 0.32. What this changes: the worker that imports it asks, once. Not guarded by a version: to ask again is
allowed and does nothing, and a CPU without AMX is left alone. Named to vLLM by `--worker-extension-cls`, its own way to
bring a module into its workers; it is imported before the weights are loaded.
"""

from __future__ import annotations

import logging

import torch

__all__ = ["Permitted"]


class Permitted:
    """Nothing: vLLM asks for a class to add to its worker, and what is needed is that the module is imported."""


if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():  # noqa: SLF001  torch has no public word for it
    # A kernel or a sandbox that refuses the tiles: what dies later dies of this.
    logging.getLogger(__name__).error("this process may not use AMX: Linux refuses the permission")
