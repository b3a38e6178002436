"""Runs on two nodes of a real cluster of Ray, one of which is killed."""

from pathlib import Path

import psutil
import pytest

from tests.clusters import needs_ray, two_nodes
from tests.extensions.cluster.test_relay import hash_of, settings
from tests.integration.runs.test_processes import limner, status, wait_until
from trainer import config, runs, storage
from trainer.runs import Run

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
        wait_until(lambda: {cluster.of(first.id), cluster.of(second.id)} == {"one", "two"})
        third = submit(file, cluster.address)
        lost, other = (first, second) if cluster.of(first.id) == "two" else (second, first)
        runs.pause(lost, go_on=True)
        wait_until(lambda: runs.look(lost).state.step == 4)
        assert runs.look(lost).state.checkpoints[-1].step == 3
        wait_until(lambda: runs.look(third).state.pid > 0)  # its process has begun: on a busy machine after the others
        psutil.Process(runs.look(third).state.pid).terminate()  # as a machine that shuts down does
        wait_until(lambda: status(third) == "stopped")
        runs.pause(other, go_on=True)
        workers = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(cluster.folder / "two") in " ".join(process.info["cmdline"] or ())
        ]
        assert workers
        cluster.kill("two")
        for run in (other, lost):
            wait_until(lambda run=run: status(run) == "finished")
        assert not any(process.is_running() for process in workers)
        assert cluster.of(other.id) == "", "nothing stays on a node"
    assert runs.look(lost).state.warnings[-1].startswith("The node of this run was lost; it goes on elsewhere from")
    assert hash_of(lost) == hash_of(other)
    assert [len(list(run.folder.glob("previews/*.png"))) for run in (lost, other)] == [3, 3]
    assert runs.look(lost).state.losses == runs.look(other).state.losses
