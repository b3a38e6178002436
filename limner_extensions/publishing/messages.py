"""A message to people when their run has ended, with its newest preview, through any service that Apprise knows."""

import os

from limner_extensions.publishing import previews
from trainer import runs
from trainer.i18n import _, duration
from trainer.runs import Run
from ui.state import run_watcher

ADDRESSES = "LIMNER_NOTIFY"


def send(run: Run) -> None:
    """Tell the addresses in the environment that a run has ended; what could not be sent is a warning in its log."""
    addresses = os.environ.get(ADDRESSES, "").split()
    if not addresses:
        return
    try:
        import apprise
    except ImportError:
        run.warn('{name} needs another package: pip install "limner[messages]".', name=ADDRESSES)
        return
    view = runs.look(run)
    state = view.state
    reached = _("Step {step} of {steps}, {time}.", step=state.step, steps=state.steps, time=duration(state.worked))
    title = f"{run_watcher.name(run)}: {runs.STATUS_LABELS[view.status]}"
    pictures = [str(run.folder / row[max(row)].file) for row in previews.by_prompt(view).values()]
    services = apprise.Apprise()
    known = [services.add(address) for address in addresses]
    if not (services.notify(state.message or reached, title, attach=pictures[:1]) and all(known)):
        run.warn("The message about its end could not be sent. Check the addresses in {name}.", name=ADDRESSES)
