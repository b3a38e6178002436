"""A run on nodes that are other homes of this machine, with real workers but no Ray, for which a stand-in is here."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from limner_extensions.cluster import node as nodes
from limner_extensions.cluster import ray_cluster, relay
from limner_extensions.cluster.node import News, Node, NodeLostError
from limner_extensions.cluster.ray_cluster import RayCluster, _RayNode
from trainer import config, runs, worker
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError

STEPS = 9


def settings(base: str = "micro", **training: Any) -> TrainConfig:  # noqa: ANN401 - any settings
    data: dict[str, Any] = {"name": "rin", "dataset": "rin", "trigger": "miraxo", "model": {"base": base}}
    data["training"] = {"steps": STEPS, "batch_size": 2, "resolution": 128 if base == "micro" else 64, **training}
    data |= {"preview": {"every": 4, "steps": 2, "prompts": ["miraxo"]}, "checkpoint": {"every": 3}}
    return config.build(data)


def make(base: str = "micro", **training: Any) -> Run:  # noqa: ANN401 - any settings
    return runs.create(settings(base, **training))


class Dead(Node):
    """A node whose machine has lost power."""

    def begin(self) -> None: ...

    def news(self, *values: Any) -> News:  # noqa: ANN401 - as of a node
        raise NodeLostError("the power is gone")


@dataclass
class Homes:
    """A cluster of this machine, each node in a folder of its own."""

    root: Path
    kind: type[Node] = Node
    placed: list[Node] = field(default_factory=list)

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        assert devices == 1
        wait()
        self.placed.append(self.kind(self.root / f"node-{len(self.placed)}"))
        return self.placed[-1]


def hash_of(run: Run) -> str:
    with safe_open(run.export, "pt") as file:
        return str(file.metadata()["sshs_model_hash"])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_what_no_node_does_is_given_up_and_a_wait_for_one_can_be_stopped(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Homes(tmp_path / "cluster", Dead)
    with pytest.raises(UserError, match="3 nodes that this run was on were lost"):
        relay.work(make(), cluster)
    assert len(cluster.placed) == 3
    monkeypatch.setattr(nodes, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"has Limner 0\.0\.1; here it is"):
        relay.work(make(), Homes(tmp_path / "cluster"))
    runs.request(run := make(), "stop")
    with pytest.raises(StopRequestedError):
        relay.work(run, Homes(tmp_path / "cluster"))


def test_without_ray_the_run_says_so(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(settings(), cluster="127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert worker.work(run) == 2
    assert runs.look(run).state.message == "Ray is not installed."


BUSY = "Initialization failure from server:\nTraceback (most recent call last):"


def connect(monkeypatch: pytest.MonkeyPatch, errors: list[BaseException]) -> list[str]:
    """Connect to a cluster that answers with these errors first, and return the addresses that were asked for."""
    addresses: list[str] = []

    def init(address: str, **options: object) -> None:
        addresses.append(address)
        if errors:
            raise errors.pop(0)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    RayCluster("ray://head:10001?CPU=2")
    return addresses


def test_a_busy_cluster_is_asked_again_and_one_that_stays_so_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = [ConnectionAbortedError(BUSY) for _ in range(ray_cluster.ATTEMPTS)]
    with pytest.raises(UserError, match="cannot be reached: Initialization failure from server:"):
        connect(monkeypatch, errors)
    assert not errors
    errors = [ConnectionError("ray client connection timeout"), ConnectionError("again")]
    with pytest.raises(UserError, match="cannot be reached: ray client connection timeout"):
        connect(monkeypatch, errors)
    assert len(errors) == 1, "where nothing answers, it is not asked again"
    assert connect(monkeypatch, [ConnectionAbortedError(BUSY)]) == ["ray://head:10001"] * 2
    with pytest.raises(StopRequestedError):  # while it connects Ray answers SIGTERM, and ends the process
        connect(monkeypatch, [SystemExit(signal.SIGTERM)])


@pytest.mark.parametrize("name", ["OutOfMemoryError", "WorkerCrashedError"])
def test_what_ends_a_node_of_ray_loses_only_the_node(name: str) -> None:
    """Ray kills an actor when the memory of its node is full, also through others: the next node may have room."""
    exceptions = pytest.importorskip("ray.exceptions")

    def get(answer: object, timeout: float | None) -> object:
        raise getattr(exceptions, name)("its memory is full")

    actor = SimpleNamespace(news=SimpleNamespace(remote=lambda *arguments: None))
    node = _RayNode(SimpleNamespace(get=get, exceptions=exceptions), actor)
    with pytest.raises(NodeLostError):
        node.news(0, 0, [], [])
