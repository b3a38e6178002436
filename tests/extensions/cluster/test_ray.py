"""Runs on two nodes of a real cluster of Ray on this machine, which nothing outside can reach; one node is killed."""

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

from tests import faults
from tests.conftest import free_port, wait
from tests.extensions.cluster.test_relay import hash_of, settings
from tests.integration.runs.test_processes import limner, status
from trainer import config, runs, storage
from trainer.runs import Run

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
            for name in ("one", "two"):
                own = {"LIMNER_HOME": str(folder / name)} | (faults.environment(fault) if name == "two" else {})
                nodes[name] = cluster.add_node(num_cpus=1, env_vars=own, **small)
            yield TwoNodes(cluster.address, f"ray://127.0.0.1:{port}", folder, nodes)
        finally:
            cluster.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


pytestmark = [pytest.mark.nightly, *needs_ray]


def submit(file: Path, address: str) -> Run:
    added = limner("queue", "add", file, "--on", address)
    assert added.returncode == 0, added.stderr
    return runs.find(added.stdout.strip())


def held(file: Path, address: str) -> Run:
    """Queue a run that holds after its first step, so that it keeps its node until it may go on."""
    run = submit(file, address)
    runs.pause(run)
    return run


def test_a_run_of_a_killed_node_ends_elsewhere_the_same(
    character: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two runs, each sent to the cluster in one of the ways; a third one, which waits, is told to end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "rin.toml"
    storage.write(file, config.dump(settings(str(tiny_sd), steps=7)))
    with two_nodes(tmp_path / "nodes", fault="hang@5") as cluster:
        first, second = held(file, cluster.address), held(file, cluster.client_address)
        wait(lambda: {cluster.of(first.id), cluster.of(second.id)} == {"one", "two"})
        third = submit(file, cluster.address)
        lost, other = (first, second) if cluster.of(first.id) == "two" else (second, first)
        runs.pause(lost, go_on=True)
        wait(lambda: runs.look(lost).state.step == 4)
        assert runs.look(lost).state.checkpoints[-1].step == 3
        wait(lambda: runs.look(third).state.pid > 0)  # its process has begun: on a busy machine after the others
        psutil.Process(runs.look(third).state.pid).terminate()  # as a machine that shuts down does
        wait(lambda: status(third) == "stopped")
        runs.pause(other, go_on=True)
        workers = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(cluster.folder / "two") in " ".join(process.info["cmdline"] or ())
        ]
        assert workers
        cluster.kill("two")
        for run in (other, lost):
            wait(lambda run=run: status(run) == "finished")
        assert not any(process.is_running() for process in workers)
        assert cluster.of(other.id) == "", "nothing stays on a node"
    assert runs.look(lost).state.warnings[-1].startswith("The node of this run was lost; it goes on elsewhere from")
    assert hash_of(lost) == hash_of(other)
    assert [len(list(run.folder.glob("previews/*.png"))) for run in (lost, other)] == [3, 3]
    assert runs.look(lost).state.losses == runs.look(other).state.losses
