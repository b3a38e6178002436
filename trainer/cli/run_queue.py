"""Commands on the run queue: show it, move, hold and release runs that wait, and queue a run again that has ended."""

from pathlib import Path
from typing import Annotated

import typer

from trainer import paths, runs
from trainer.cli.console import echo, echo_table
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, archive, queue

app = typer.Typer(help="Show the queue of runs, and change it.")
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or name of a run under outputs/.")]


@app.callback(invoke_without_command=True)
def _show(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show()


def show() -> None:
    """List the run that has the device, and those that wait in their order."""
    waiting = queue.waiting()
    labels = runs.STATUS_LABELS
    rows = [("-", run.id, labels["running"]) for run in runs.all_runs() if runs.look(run).status == "running"]
    for place, run in enumerate(waiting, 1):
        rows.append((str(place), run.id, _("On hold") if run.on_hold else labels["waiting"]))
    if rows:
        echo_table([*rows])
    else:
        echo("No run is active.")


@app.command()
def move(
    run: RunName, place: Annotated[int, typer.Argument(min=1, metavar="PLACE", help="1 = the first that waits.")]
) -> None:
    """Give a run that waits another place."""
    queue.move(find(run), place)
    show()


@app.command()
def hold(run: RunName) -> None:
    """Keep a run that waits from starting until it is released; it keeps its place."""
    queue.hold(find(run))
    show()


@app.command()
def release(run: RunName) -> None:
    """Let a run on hold start when it is its turn."""
    queue.hold(find(run), release=True)
    show()


@app.command()
def retry(run: RunName) -> None:
    """Queue a new run with the settings of one that has ended; it trains in the background."""
    new = archive.again(find(run))
    runs.start(new)
    echo(new.id)


def find(name: str) -> Run:
    """Return a run by its folder or its name.

    Raises:
        UserError: there is none.
    """
    folder = Path(name)
    for candidate in (folder, paths.outputs() / name if paths.is_name(name) else folder):
        if (candidate / "config.toml").is_file():
            is_ours = candidate.resolve().parent == paths.outputs().resolve()
            return runs.find(candidate.resolve().name) if is_ours else Run(candidate)
    raise UserError("There is no run {name!r}.", "Give its folder, or its name under outputs.", name=folder.name[:80])
