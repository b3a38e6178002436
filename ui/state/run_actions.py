"""Actions on a run that the page and the API share: start, stop, pause, resume, extend, retry."""

import os

from trainer import runs
from trainer.errors import UserError
from trainer.runs import Run, View, archive, cards, control, queue
from ui import audit
from ui.state import warm_worker
from ui.state.sampler_client import SamplerClient


def start(run: Run, sampler: SamplerClient) -> Run:
    """Start or resume a run. The sampler process ends first, so that a run of this machine has the device to itself."""
    if not run.cluster:
        sampler.close()
    warm_worker.start(run)
    audit.record("start", what=run.id)
    return run


def cluster() -> str:
    """Return the address of the cluster that this page sends runs to; "" without one."""
    return os.environ.get("LIMNER_CLUSTER", "")


def resume(run_id: str | None, sampler: SamplerClient) -> Run:
    """Resume a run from its last checkpoint."""
    return start(runs.find(run_id or ""), sampler)


def extend(run_id: str | None, sampler: SamplerClient) -> Run:
    """Continue a finished run with half as many steps again."""
    run = runs.find(run_id or "")
    archive.extend(run, extra_steps(runs.look(run)))
    return start(run, sampler)


def extra_steps(view: View) -> int:
    """Return the number of steps that `extend` adds."""
    return max(10, view.state.steps // 2)


def retry(run_id: str | None, sampler: SamplerClient) -> Run:
    """Start a copy of a failed run, with the change that its failure suggests, if any; the failed one stays.

    Raises:
        UserError: the run has not failed.
    """
    view = runs.look(runs.find(run_id or ""))
    if view.status != "failed":
        raise UserError("This run has not failed.", "Use its settings again instead.")
    return start(archive.again(view.run, view.state.change), sampler)


def arrange(run_id: str, act: str, place: int) -> None:
    """Change what a waiting run is in the queue: move it to a `place`, 1 = the first, put it on hold, or release it.

    Raises:
        UserError: the run does not wait.
    """
    run = runs.find(run_id)
    if act == "move":
        queue.move(run, place)
    else:
        queue.hold(run, release=act == "release")
    audit.record(f"queue {act}", what=run.id)


def delete(run_id: str) -> None:
    """Move a run to the bin."""
    run = runs.find(run_id)
    archive.delete(run)
    audit.record("delete", what=run.id)


def ask(run_id: str | None, command: runs.Command) -> None:
    """Ask an active run for something; its worker answers after the current step.

    Raises:
        UserError: the run is not active.
    """
    run = runs.find(run_id or "")
    if runs.look(run).status not in runs.ACTIVE:
        raise UserError("This run is not active.", "Resume it first.")
    if command == "stop":
        audit.record("stop", what=run.id)
        control.stop(run)
    else:
        runs.request(run, command)


def pause(run_id: str | None, sampler: SamplerClient, *, go_on: bool) -> Run:
    """Pause a run, or let it go on.

    The sampler process ends first if the run goes on, so that it has the device to itself, and where there are several
    cards: the next one starts on the card of the paused run.

    Raises:
        UserError: the run is not training.
    """
    run = runs.find(run_id or "")
    if runs.look(run).status != "running":
        raise UserError("This run is not active.", "Resume it first.")
    if not run.cluster and (go_on or len(cards.known()) > 1):
        sampler.close()
    runs.pause(run, go_on=go_on)
    return run
