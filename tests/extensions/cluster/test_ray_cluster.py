"""A connection to a cluster of Ray that is busy, by a stand-in for Ray."""

import signal
import sys
from types import SimpleNamespace

import pytest

from limner_extensions.cluster import ray_cluster
from limner_extensions.cluster.node import NodeLostError
from limner_extensions.cluster.ray_cluster import RayCluster, _RayNode
from trainer.errors import UserError
from trainer.runs import StopRequestedError

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
