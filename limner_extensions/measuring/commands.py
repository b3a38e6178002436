"""Command that measures the checkpoints of a run."""

from typing import Annotated

import typer

from limner_extensions.measuring import job as jobs
from limner_extensions.measuring import table
from limner_extensions.measuring.job import MeasureConfig
from limner_extensions.measuring.table import Table
from trainer import config
from trainer.cli.console import echo, echo_table, work_visibly
from trainer.cli.run_queue import RunName, find
from trainer.i18n import _

app = typer.Typer()


@app.command()
def measure(
    run: RunName,
    features: Annotated[
        str, typer.Option(metavar="FOLDER", help="CLIP, DINO or DINOv2 model (default: the base model itself).")
    ] = "",
    images: Annotated[
        int, typer.Option(metavar="N", help="Images for each checkpoint with the trigger, and as many without.")
    ] = MeasureConfig().images,
    step: Annotated[
        list[int] | None, typer.Option(metavar="STEP", help="Measure this checkpoint; may be repeated (default: all).")
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(metavar="X", help="Measure at this strength; may be repeated (default: 1).")
    ] = None,
) -> None:
    """Measure the checkpoints of a run beside the base model; one that was stopped goes on where it was."""
    trained = find(run)
    settings = {"features": features, "images": images, "steps": step or [], "strengths": strength or [1.0]}
    job = jobs.create(trained, config.check(MeasureConfig, settings))
    code = work_visibly(job)
    result = jobs.read_table(trained)
    if code == 0 and result:
        _echo(result)
    raise typer.Exit(code)


def _echo(result: Table) -> None:
    heads = (_("Checkpoint"), *(table.TITLES[name] for name in result.measures), _("Beside the last checkpoint"))
    rows = [heads]
    for row in result.rows:
        cells = []
        for name in result.measures:
            best = "*" if row is result.best(name) else ""
            cells.append(f"{table.number(row.figures[name].value)}{best} ({table.interval(row.figures[name])})")
        rows.append((row.label, *cells, table.verdict(row)))
    echo_table(rows)
    for note in table.notes(result):
        echo(note)
