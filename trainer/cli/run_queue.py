"""Commands on the run queue: show it, add runs, move and hold those that wait, and queue an ended one again."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trainer import config, extension, paths, runs
from trainer.cli.console import echo, echo_table
from trainer.config import TrainConfig, adjustments, base_notes
from trainer.data import dataset
from trainer.errors import UserError
from trainer.i18n import _, duration, ngettext
from trainer.machine import pace
from trainer.runs import Run, archive, cards, queue

app = typer.Typer(help="Show the queue of runs, and change it.")
MAX_ADDED = 200  # runs at once: each that waits is a small process
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a setting; may be repeated.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or name of a run under outputs/.")]


@app.callback(invoke_without_command=True)
def _show(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show()


def show() -> None:
    """List the runs that have what they need, and those that wait in their order."""
    waiting = queue.waiting()
    labels = runs.STATUS_LABELS
    rows = []
    for view in map(runs.look, runs.all_runs()):
        if view.status in runs.ACTIVE and view.run not in waiting:
            status = labels["running"] if view.status == "running" else _("starting")
            if view.run.cluster:
                status += f", {view.run.cluster}"
            rows.append(("-", view.run.id, ", ".join(filter(None, (status, cards.describe(view.state.cards))))))
    for place, run in enumerate(waiting, 1):
        status = _("On hold") if run.on_hold else labels["waiting"]
        rows.append((str(place), run.id, ", ".join(filter(None, (status, _takes(run))))))
    if rows:
        echo_table([*rows])
    else:
        echo("No run is active.")


def _takes(run: Run) -> str:
    """Say how long a run that waits will take here; "" if it is broken, or trains elsewhere."""
    try:
        return "" if run.cluster else takes(run.config())
    except UserError:  # as the worker will say
        return ""


def takes(settings: TrainConfig) -> str:
    """Say how long the steps of a run take here, by one like it, or as computed for this processor; "" if that is open.

    Raises:
        UserError: a dataset is not there or cannot be read.
    """
    images = adjustments.trained_count(settings, dataset.read_subjects(settings.taught))
    steps = adjustments.complete(settings, images).training.steps
    similar = runs.find_similar(settings)
    if similar and similar.seconds_per_step:
        time = duration(similar.seconds_per_step * steps)
        return ngettext("about {time} for {n} step", "about {time} for {n} steps", steps, time=time)
    if seconds := pace.seconds_per_step(settings):
        least, most = (duration(steps * each) for each in seconds)
        return ngettext(
            "{least} to {most} for {n} step, as computed",
            "{least} to {most} for {n} steps, as computed",
            steps,
            least=least,
            most=most,
        )
    return ""


@app.command()
def add(
    settings_files: Annotated[list[Path], typer.Argument(metavar="CONFIG.toml...", help="Full or partial settings.")],
    assignments: Assignments = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY.PATH=VALUE,VALUE",
            help="A run for each of the values; repeated, one for each combination.",
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="ADDRESS",
            help="Train elsewhere: ssh://HOST, or on a cluster of Ray, ray://HOST:10001 or HOST:6379.",
        ),
    ] = "",
) -> None:
    """Queue a run for each config file; they train in the background, on each card one after the other."""
    varied = [_values(assignment) for assignment in grid or []]
    count = len(settings_files) * math.prod(map(len, varied))
    if count > MAX_ADDED:
        raise UserError("These are {count} runs.", "Add at most {most} at once.", count=count, most=MAX_ADDED)
    added = [
        (read_settings(file, [*(assignments or []), *chosen], on), chosen)
        for file in settings_files
        for chosen in itertools.product(*varied)
    ]
    for settings, chosen in added:  # all of them are valid
        run = runs.create(settings.model_copy(update={"name": _name(settings.name, chosen)}), cluster=on)
        runs.start(run)
        echo("  ".join(filter(None, (run.id, *chosen, _takes(run)))))


def read_settings(file: Path, assignments: Sequence[str], on: str = "") -> TrainConfig:
    """Return the settings of a run from a config file with assignments, whose datasets and base model are there.

    Raises:
        UserError: the settings are invalid, a dataset or the base model is missing, or no place to run is `on`.
    """
    settings = config.build(config.override(config.load_partial(file), list(assignments)))
    dataset.install_examples()
    for subject in settings.taught:
        dataset.find_folder(subject.dataset)
        if subject.regularization:
            dataset.find_folder(subject.regularization)
    if on:
        extension.place(on)
    else:
        base_notes.check(settings)
    return settings


def _values(assignment: str) -> list[str]:
    """Split `key=a,b` into `key=a` and `key=b`."""
    path, _equals, values = assignment.partition("=")
    return [f"{path}={value.strip()}" for value in values.split(",")]


def _name(name: str, chosen: Sequence[str]) -> str:
    """Return the name of a run, with the values that tell it from the others."""
    values = [assignment.rpartition(".")[2].replace("=", "-") for assignment in chosen]
    return paths.safe_name("-".join((name, *values)), name)


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
        if Run(candidate).config_file.is_file():
            is_ours = candidate.resolve().parent == paths.outputs().resolve()
            return runs.find(candidate.resolve().name) if is_ours else Run(candidate)
    raise UserError("There is no run {name!r}.", "Give its folder, or its name under outputs.", name=folder.name[:80])
