"""A cluster of Ray with two nodes on this machine, which nothing outside can reach; each node has a home of its own."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import free_port

needs_ray = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason=f"Ray has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]} here"
    ),
    # Ray leaves the logs of its client server open.
    pytest.mark.filterwarnings("ignore:(?s).*ray_client_server:pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class TwoNodes:
    """The addresses to connect to: on a node, and from elsewhere; the nodes, whose homes are `one` and `two`."""

    address: str
    client_address: str
    folder: Path
    nodes: dict[str, Any]

    def of(self, run_id: str) -> str:
        """Return the name of the node that a run is on; "" if it is on none."""
        folders = self.folder.glob(f"*/outputs/.cluster/runs/*/outputs/{run_id}")
        return next((folder.relative_to(self.folder).parts[0] for folder in folders), "")

    def kill(self, name: str) -> None:
        """Kill a node and all that it started, but for workers of Limner, which have to notice."""
        raylet = psutil.Process(self.nodes[name].all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children()):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def two_nodes(folder: Path, fault: str = "") -> Iterator[TwoNodes]:
    """Two nodes with a CPU each, and a head without any; all end with the `with`. On the second, runs have a fault."""
    temporary = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets have at most 107 letters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", temporary)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # then it listens on 127.0.0.1 alone, on Linux, too
        from ray.cluster_utils import Cluster

        cluster, port = Cluster(), free_port()
        small = {"num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        try:
            cluster.add_node(num_cpus=0, ray_client_server_port=port, **small)
            nodes = {}
            for name, faults in (("one", ""), ("two", fault)):
                own = {"LIMNER_HOME": str(folder / name), "LIMNER_TEST": "1", "LIMNER_FAULT": faults}
                nodes[name] = cluster.add_node(num_cpus=1, env_vars=own, **small)
            yield TwoNodes(cluster.address, f"ray://127.0.0.1:{port}", folder, nodes)
        finally:
            cluster.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)
