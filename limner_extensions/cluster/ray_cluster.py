"""Nodes that Ray chooses: an actor for each run, which Ray places where the resources are free that it asks for."""

import importlib
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl

from limner_extensions.cluster.node import FAREWELL, Node, NodeLostError
from trainer.errors import UserError
from trainer.runs import StopRequestedError

LOOK = 0.5  # seconds to look whether there is room
ATTEMPTS = 3  # at a cluster that answers, but is too busy to serve one more client within Ray's half a minute


class RayCluster:
    """A cluster of Ray, as this process sees it for the rest of its life.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
        StopRequestedError: the process was told to end meanwhile.
    """

    def __init__(self, address: str) -> None:
        where, _, query = address.partition("?")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._resources = _amounts(query)
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UserError("Ray is not installed.", "Install it with: pip install 'limner[cluster]'") from None
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            self._connect(where)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise UserError(
                "The cluster at {address} cannot be reached: {error}.",
                "Check the address, and whether Ray is running there.",
                address=where,
                error=str(error).partition("\n")[0].rstrip("."),
            ) from error
        except SystemExit:  # Ray's own answer to SIGTERM
            raise StopRequestedError from None
        finally:
            signal.signal(signal.SIGTERM, on_terminate)

    def _connect(self, where: str, attempt: int = 1) -> None:
        try:
            self._ray.init(where, log_to_driver=False, logging_level="ERROR")
        except ConnectionAbortedError:  # by the server; an address where nothing answers is another error
            if attempt == ATTEMPTS:
                raise
            self._connect(where, attempt + 1)

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        """Return a node with room for a run on this many devices, calling `wait` again and again until there is one.

        A run asks for a CPU and, if the cluster has any, for GPUs; and for what the address names, as in `?CPU=8`.

        Raises:
            NodeLostError: the node was lost as it was about to begin.
        """
        has_gpus = bool(self._ray.cluster_resources().get("GPU"))
        wanted = {"CPU": 1, "GPU": devices * has_gpus, **self._resources}
        actor = self._ray.remote(Node).options(num_cpus=wanted.pop("CPU"), num_gpus=wanted.pop("GPU"), resources=wanted)
        node = _RayNode(self._ray, actor.remote())
        try:
            node.wait(wait)
        except BaseException:
            node.kill()
            raise
        return cast(Node, node)


class _RayNode:
    """A node in an actor of Ray: calls its methods, and waits for each answer."""

    def __init__(self, ray: Any, actor: Any) -> None:  # noqa: ANN401 - of Ray
        self._ray, self._actor = ray, actor

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: object, timeout: float | None = None, **named: object) -> Any:  # noqa: ANN401 - whatever it answers
        errors = self._ray.exceptions
        try:
            return self._ray.get(getattr(self._actor, method).remote(*arguments, **named), timeout=timeout)
        except (UserError, errors.GetTimeoutError):
            raise
        except errors.RayError as error:  # whatever else is wrong is wrong with the node, such as its memory
            raise NodeLostError(str(error)) from error

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Wait until the actor has a node."""
        answer = self._actor.about.remote()
        while not self._ray.wait([answer], timeout=LOOK)[0]:
            meanwhile()
        self._call("about")

    def end(self) -> None:
        """As `Node.end`; then the actor ends, whose worker does not outlive it."""
        try:
            self._call("end", timeout=FAREWELL)
        except self._ray.exceptions.GetTimeoutError:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the actor, or take back the request for a node."""
        self._ray.kill(self._actor)


def _amounts(query: str) -> dict[str, float]:
    """Read resources as in `CPU=8&a100=1`.

    Raises:
        UserError: something is not a number.
    """
    try:
        return {name: float(amount) for name, amount in parse_qsl(query, strict_parsing=bool(query))}
    except ValueError:
        raise UserError(
            "{query!r} does not name resources.", "Write them as in ?CPU=8&GPU=1, by Ray's names.", query=query
        ) from None
