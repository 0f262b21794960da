"""A real Ray cluster of several nodes on this machine, whose nodes a test may add and kill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

#: A node that is silent for this long has lost its leases.
SECONDS = "2"


class RayCluster:
    """A head that runs no stage, and nodes with a CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self._cluster.address

    def add(self, **variables: str) -> Any:
        """A node whose processes have these environment variables besides."""
        return self._cluster.add_node(num_cpus=1, env_vars={"QUANTIZE_LEASE_SECONDS": SECONDS, **variables})

    def kill(self, node: Any) -> None:
        """SIGKILL to all of Ray's processes of a node. What these had started lives on."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'quantize[ray]')")
    running = RayCluster()
    try:
        yield running
    finally:
        running.close()
