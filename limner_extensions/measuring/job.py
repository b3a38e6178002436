"""Measuring jobs: their settings, folder and result. Torch-free.

A job is a run in the folder `measured` of the run that it measures. It keeps the images that it generates and their
features, by what they depend on, so that a job that is resumed or has other settings repeats nothing.
"""

from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from limner_extensions.measuring.table import Table
from trainer import config as configs
from trainer import runs, storage
from trainer.errors import UserError
from trainer.runs import Run, View, checkpoints
from trainer.schema import Section

FOLDER = "measured"
RESULT = "table.json"
SEEDS = 2
_TABLE = TypeAdapter(Table)


class MeasureConfig(Section):
    """One job that measures the checkpoints of a run."""

    task: Literal["measure"] = Field("measure", description="Kind of task.")
    features: str = Field(
        "",
        max_length=1000,
        description="Folder of a CLIP, DINO or DINOv2 model that compares the images; empty = the base model itself.",
    )
    images: int = Field(
        16,
        ge=4,
        le=400,
        multiple_of=SEEDS,
        description="Images for each checkpoint with the trigger, and as many without: prompts with two seeds each.",
    )
    steps: tuple[int, ...] = Field((), max_length=100, description="Steps of the checkpoints; empty = all.")
    strengths: tuple[float, ...] = Field(
        (1.0,), min_length=1, max_length=10, description="Strengths of the adapter that each is measured at."
    )


def folder_of(run: Run) -> Run:
    """Return the job of a run, which need not exist."""
    return Run(run.folder / FOLDER)


def newest(run: Run) -> View | None:
    """Return the job of a run as it stands; None if it was never measured."""
    job = folder_of(run)
    return runs.look(job) if job.config_file.is_file() else None


def create(run: Run, settings: MeasureConfig) -> Run:
    """Prepare the job of a run, also one that was stopped or had other settings.

    Raises:
        UserError: the run is active or being measured, or has no such checkpoint.
    """
    runs.check_ended(run)
    job = folder_of(run)
    if (view := newest(run)) and view.status in runs.ACTIVE:
        raise UserError("The checkpoints of this run are already being measured.", "Wait until that has ended.")
    steps(run, settings)
    (job.folder / "ask").mkdir(parents=True, exist_ok=True)
    storage.write(job.config_file, configs.dump(settings))
    return job


def load(job: Run) -> MeasureConfig:
    """Read the settings of a job.

    Raises:
        UserError: they cannot be read.
    """
    return configs.check(MeasureConfig, configs.load_partial(job.config_file))


def steps(run: Run, settings: MeasureConfig) -> list[int]:
    """Return the steps whose checkpoints are measured, the first one first.

    Raises:
        UserError: the run has no checkpoint, or none of a step that the settings name.
    """
    saved = {checkpoint.step for checkpoint in runs.look(run).state.checkpoints}
    known = sorted(step for step in saved if checkpoints.adapter_file(run, step).is_file())
    if not known:
        raise UserError("This run has no checkpoint yet.", "Train it first.")
    if missing := [step for step in settings.steps if step not in known]:
        raise UserError(
            "There is no checkpoint of step {step}.",
            "There are those of {steps}.",
            step=missing[0],
            steps=", ".join(map(str, known)),
        )
    return sorted(set(settings.steps)) or known


def read_table(run: Run) -> Table | None:
    """Return the figures of a run's checkpoints; None if they were never measured to the end, or cannot be read."""
    try:
        table = _TABLE.validate_json((folder_of(run).folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None
    is_whole = all(set(table.measures) <= row.figures.keys() for row in table.rows)
    return table if is_whole else None


def save_table(job: Run, table: Table) -> None:
    """Write the figures that a job ends with."""
    storage.write(job.folder / RESULT, _TABLE.dump_json(table, indent=1))
