"""A run on nodes that are other homes of this machine, with real workers but no Ray, which `test_ray` has."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.integration.runs.test_processes import wait_until
from tests.workers import Workers
from trainer import config, runs, worker
from trainer.cluster import node as nodes
from trainer.cluster import relay
from trainer.cluster.node import News, Node, NodeLostError
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError, events

STEPS = 9


def settings(base: str = "micro", **training: Any) -> TrainConfig:  # noqa: ANN401 - any settings
    return config.build(
        {
            "name": "rin", "dataset": "rin", "trigger": "miraxo", "model": {"base": base},
            "training": {"steps": STEPS, "batch_size": 2, "resolution": 128 if base == "micro" else 64, **training},
            "preview": {"every": 4, "steps": 2, "prompts": ["miraxo"]}, "checkpoint": {"every": 3},
        }
    )  # fmt: skip


def make(base: str = "micro", **training: Any) -> Run:  # noqa: ANN401 - any settings
    return runs.create(settings(base, **training))


class Mortal(Node):
    """A node whose machine loses power after a step of its worker that the relay has been told of; -1 = never."""

    dies_after, told = -1, 0

    def begin(self) -> None:
        if self.dies_after == 0:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIMNER_TEST", "1")
            patch.setenv("LIMNER_FAULT", f"hang@{self.dies_after + 1}")
            super().begin()

    def news(self, *values: Any) -> News:  # noqa: ANN401 - as of a node
        if self.told == self.dies_after:
            if self._worker:
                self._worker.kill()
            raise NodeLostError("the power is gone")
        news = super().news(*values)
        self.told = runs.look(self._run).state.step
        return news


@dataclass
class Homes:
    """A cluster of this machine, each node in a folder of its own; the first ones die after these steps."""

    root: Path
    deaths: list[int] = field(default_factory=list)
    placed: list[Mortal] = field(default_factory=list)

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        assert devices == 1
        wait()
        node = Mortal(self.root / f"node-{len(self.placed)}")
        node.dies_after = self.deaths.pop(0) if self.deaths else -1
        self.placed.append(node)
        return node


def hash_of(run: Run) -> str:
    with safe_open(run.export, "pt") as file:
        return str(file.metadata()["sshs_model_hash"])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.nightly
def test_a_run_whose_node_is_lost_ends_elsewhere_as_if_nothing_had_happened(
    character: Path, tiny_sd: Path, workers: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, run = make(str(tiny_sd)), make(str(tiny_sd))
    before = run.config()
    cluster = Homes(tmp_path / "cluster", deaths=[5])
    assert relay.work(run, cluster) == 0
    assert workers.work(undisturbed) == 0
    view = runs.look(run)
    assert view.state.end == "finished"
    assert view.state.warnings[-1] == "The node of this run was lost; it goes on elsewhere from step 3."
    assert [node.told for node in cluster.placed] == [5, 9]
    starts = [event.step for event in events.read(run.log)[0] if isinstance(event, events.Started)]
    assert starts == [0, 3]
    same, other = load_file(run.export), load_file(undisturbed.export)
    assert all(same[name].equal(other[name]) for name in same.keys() | other.keys())
    assert hash_of(run) == hash_of(undisturbed)
    assert runs.look(undisturbed).state.losses == view.state.losses
    assert [(run.folder / preview.file).is_file() for preview in view.state.previews] == [True] * 4
    assert run.config().model.base == before.model.base
    assert run.config().record.dataset_sha256
    assert "the power is gone" in capsys.readouterr().err
    assert not list(tmp_path.glob("cluster/*/runs/*/outputs")), "nothing of the run stays on the nodes"


@pytest.mark.nightly
def test_stop_and_pause_reach_the_node(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    run = make(str(tiny_sd), steps=100_000)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(relay.work(run, Homes(tmp_path / "cluster"))))
    thread.start()
    wait_until(lambda: runs.look(run).state.step > 1)
    runs.pause(run)
    wait_until(lambda: bool(list(tmp_path.glob(f"cluster/*/runs/*/outputs/{run.id}/ask/pause"))))
    runs.pause(run, go_on=True)
    runs.request(run, "stop")
    thread.join(60)
    assert codes == [0]
    state = runs.look(run).state
    assert state.end == "stopped"
    assert state.checkpoints[-1].step == state.step
    assert not (run.folder / "ask" / "stop").exists()


def test_a_run_that_loses_every_node_gives_up(character: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 nodes that this run was on were lost"):
        relay.work(make(), Homes(tmp_path / "cluster", deaths=[0, 0, 0, 0]))


def test_a_node_that_has_died_before_the_run_was_there_is_none_that_it_lost(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    cluster, misses = Homes(tmp_path / "cluster"), relay.MISSES - 1

    def place(devices: int, wait: Callable[[], None]) -> Node:
        nonlocal misses
        misses -= 1
        if misses >= 0:
            raise NodeLostError("Ray has not noticed yet")
        return Homes.place(cluster, devices, wait)

    monkeypatch.setattr(cluster, "place", place)
    monkeypatch.setattr(relay, "EVERY", 0)
    monkeypatch.setattr(nodes, "__version__", "0.0.1")
    with pytest.raises(UserError, match="has Limner"):  # so it has reached one
        relay.work(run, cluster)
    assert runs.look(run).state.warnings == ()
    misses = relay.MISSES
    with pytest.raises(UserError, match="no node on which the run can begin"):
        relay.work(run, cluster)


def test_another_version_of_limner_is_refused(character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"has Limner 0\.0\.1; here it is"):
        relay.work(make(), Homes(tmp_path / "cluster"))


def test_a_run_that_waits_for_a_node_can_be_stopped(character: Path, tmp_path: Path) -> None:
    run = make()
    runs.request(run, "stop")
    with pytest.raises(StopRequestedError):
        relay.work(run, Homes(tmp_path / "cluster"))


def test_without_ray_or_with_several_people_the_run_says_so(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(settings(), cluster="127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert worker.work(run) == 2
    assert runs.look(run).state.message == "Ray is not installed."
    monkeypatch.setenv("LIMNER_SHARED", str(character))
    assert worker.work(run) == 2
    assert "several people" in runs.look(run).state.message
