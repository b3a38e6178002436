"""Work on a run by having a node of a cluster do so: find one, keep the run's folder up to date, go on elsewhere.

To everyone else this process is the run's worker: it holds the lock, reports events, and answers requests.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from limner_extensions.cluster import parcels
from limner_extensions.cluster.border import MAX_REASON, Border, clean
from limner_extensions.cluster.mirror import Mirror
from limner_extensions.cluster.node import About, Node, NodeLostError
from limner_extensions.cluster.parcels import Parcel
from trainer import __version__, runs, storage
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError

EVERY = 0.3  # seconds between two looks at a node
LOSSES = 3  # nodes that a run may lose one after the other without a new checkpoint
MISSES = 20  # times in a row that a cluster may name a node that turns out to be dead already


class Cluster(Protocol):
    """Place for runs. It alone decides when and on which node."""

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        """Return a node with room for a run on this many devices, calling `wait` again and again until there is one."""


def work(run: Run, cluster: Cluster) -> int:
    """Have a run worked on by nodes of a cluster; return the exit code of its worker.

    Raises:
        UserError: a node has another version of Limner, or one after the other was lost or could not be begun with.
        StopRequestedError: the run was asked to stop before it had a node.
    """
    packed = parcels.pack(run.config())  # once: no node has a say in what the next one is sent
    losses, step = 0, _last_checkpoint(run)
    while True:
        node = _place(run, cluster)
        try:
            return _work_on(run, node, packed)
        except NodeLostError as error:
            reason = clean(str(error), MAX_REASON)
            sys.stderr.write(f"{reason}\n")
            losses = 1 if _last_checkpoint(run) > step else losses + 1
            step = _last_checkpoint(run)
            _report_loss(run, losses, step, reason)
        finally:
            with suppress(NodeLostError):
                node.end()


def _place(run: Run, cluster: Cluster) -> Node:
    """Return a node that lives: for a while, Ray also places runs on one that has just died.

    Raises:
        UserError: that happened too often.
    """
    for _miss in range(MISSES):
        try:
            return cluster.place(run.config().planned_devices or 1, lambda: _wait(run))
        except NodeLostError as error:
            sys.stderr.write(f"{clean(str(error), MAX_REASON)}\n")
            _wait(run)
    raise UserError(
        "The cluster has no node on which the run can begin.", "The log says what happened to those it was sent to."
    )


def _work_on(run: Run, node: Node, packed: Mapping[str, Parcel]) -> int:
    border = Border(node, run.folder)
    about = border.about()
    check_version(about)
    storage.remove(run.folder / "ask" / "start")
    mirror = Mirror(run, border, packed, about.name)
    mirror.send()
    while (code := mirror.update()) is None:
        time.sleep(EVERY)
    return code


def check_version(about: About) -> None:
    """Check that a node has the version of Limner that runs here.

    Raises:
        UserError: it has another one.
    """
    if about.version != __version__:
        raise UserError(
            "{node} has Limner {there}; here it is {here}.",
            "Install the same version on all machines of the cluster.",
            node=about.name,
            there=about.version,
            here=__version__,
        )


def _wait(run: Run) -> None:
    """Wait a moment for a node.

    Raises:
        StopRequestedError: the run was asked to stop.
    """
    if run.take_request("stop"):
        raise StopRequestedError
    time.sleep(EVERY)


def _last_checkpoint(run: Run) -> int:
    return max((checkpoint.step for checkpoint in runs.look(run).state.checkpoints), default=0)


def _report_loss(run: Run, losses: int, step: int, reason: str) -> None:
    """Say that the node is lost; the run waits again.

    Raises:
        UserError: it has lost too many.
    """
    if losses >= LOSSES:
        raise UserError(
            "{count} nodes that this run was on were lost, one after the other. The last one: {reason}.",
            "The log says more; the run may take more memory than they have.",
            count=losses,
            reason=reason.partition("\n")[0].rstrip("."),
        )
    run.warn("The node of this run was lost; it goes on elsewhere from step {step}.", step=step)
    (run.folder / "ask" / "start").touch()
