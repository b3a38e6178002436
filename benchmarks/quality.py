"""Measure what recipes teach micro: likeness, adherence, drift, leak, copies, diversity and time, by a judge.

    python -m benchmarks.quality run JUDGE_FOLDER FIGURES.csv [--only ours,kohya] [--subjects miraxo,dylan] [--seeds 1]
        [--base FOLDER] [--faster 2] [--last]
    python -m benchmarks.quality table FIGURES.csv
    python -m benchmarks.quality sheet FIGURES.csv PICTURE.png [--draw 0]
    python -m benchmarks.quality --smoke

`run` trains each recipe (benchmarks/recipes.py) on each held-out subject and grades its adapters at an eighth, a
quarter, a half and the end of the run (ablations, and all with `--last`, only at the end); runs that are in the CSV are
not repeated. benchmarks/judge.py says how to make JUDGE_FOLDER. With `--base` the same settings train another base
model of the same world, with each learning rate times `--faster`; its figures belong in a CSV of their own. `table`
prints the results with intervals as Markdown. `sheet` lays out images of a subject and prompts picked by a seed.
`--smoke` runs all of it with a tiny world, judge and runs.

A row of the CSV is one image, graded by benchmarks/grading.py.
"""

import argparse
import gc
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import grading, recipes, report, subjects
from benchmarks import judge as judges
from benchmarks.grading import NOISES, PROMPTS, Row, Yardstick
from benchmarks.micro import load_base
from benchmarks.recipes import ABLATIONS, GUARDED, OURS, PEERS, RECIPES, TUNED, WIDTH
from benchmarks.subjects import CHARACTERS, STYLES, Subject
from scripts.pretrain_micro.pictures import save_grid
from trainer import runs
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.config.adjustments import planned_steps
from trainer.data import dataset
from trainer.errors import UserError
from trainer.families import Family
from trainer.runs import Run, events
from trainer.runs.checkpoints import ADAPTER
from trainer.train import train

PARTS = (8, 4, 2, 1)  # an adapter is graded after 1/8, 1/4, 1/2 and all of a run's steps
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """One training; `rate` multiplies the recipe's learning rate."""

    subject: str
    recipe: str
    rate: float
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """Its key in the CSV."""
        return self.subject, self.recipe, f"{self.rate:.4g}", str(self.seed)


@dataclass(frozen=True)
class Taught:
    """An adapter of a run: its step, the images seen until then, and the CPU seconds."""

    step: int
    exposures: int
    seconds: float
    file: Path
    finished: bool


def plan(only: Sequence[str], names: Sequence[str], seeds: int) -> list[Task]:
    """Return all trainings, the most informative first: at micro's rate, as documented, ablations, other rates."""
    waves: list[dict[str, list[float]]] = [
        {OURS: [1.0], **{name: [WIDTH] for name in PEERS}},
        {name: [1.0] for name in PEERS},
        {**{name: [1.0] for name in ABLATIONS}, **{name: [WIDTH] for name in GUARDED}},
        {name: [rate for rate in TUNED if rate != WIDTH] for name in PEERS},
    ]
    tasks = {
        Task(name, recipe, rate, seed): None
        for wave in waves
        for seed in range(seeds)
        for recipe, rates in wave.items()
        for rate in rates
        for name in names
        if not only or recipe in only
    }
    return list(tasks)


def taught(config: TrainConfig, home: Path, pictures: int, parts: Sequence[int]) -> Iterator[Taught]:
    """Train in `home`, and yield the adapters to grade, the earliest first.

    Seconds are CPU time, from before the base model is loaded, without the start of Python, so that other load on the
    machine does not matter. The dataset is copied, as encoded images are cached in it.
    """
    steps = planned_steps(config.training, pictures)
    every = max(1, steps // parts[0])
    data = home / "dataset"
    shutil.copytree(config.dataset, data, ignore=shutil.ignore_patterns(".cache"))
    config = config.model_copy(update={
        "dataset": str(data),
        "preview": config.preview.model_copy(update={"every": 0, "steps": 1, "prompts": (config.trigger,)}),
        "checkpoint": config.checkpoint.model_copy(update={"every": every, "keep": 1000, "minutes": 1440.0}),
    })  # fmt: skip
    started, times = time.process_time(), {}

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Checkpoint):
            times[event.step] = time.process_time() - started

    run = Run(runs.create(config, home / "run").folder, listen)
    train(config, run)
    per_step = config.training.batch_size * config.training.gradient_accumulation
    early = [every * parts[0] // part for part in parts[:-1]]
    for step in [*(step for step in early if step < steps), steps]:
        file = run.folder / "checkpoints" / f"{step:06d}" / ADAPTER
        yield Taught(step, step * per_step, times[step], file, step == steps)


def measure(
    task: Task, subject: Subject, scale: Yardstick, family: Family, *, sheet: Path, parsed: argparse.Namespace
) -> list[Row]:
    """Train and grade; save the last adapter's images with the trigger side by side in `sheet`."""
    pictures = len(dataset.read(subject.dataset))
    rate = task.rate * parsed.faster
    config = recipes.settings(RECIPES[task.recipe], subject, pictures, rate=rate, seed=task.seed)
    # Settings that are micro's stay as they are, whatever family the other base model is of.
    config = config.model_copy(update={"model": config.model.model_copy(update={"base": parsed.base})})
    if parsed.steps:
        config = config.model_copy(update={"training": config.training.model_copy(update={"steps": parsed.steps})})
    rows = []
    with tempfile.TemporaryDirectory() as home:
        parts = PARTS[-1:] if parsed.last or task.recipe in ABLATIONS else PARTS
        for adapter in taught(config, Path(home), pictures, parts):
            family.pipeline().load_lora_weights(str(adapter.file.parent), weight_name=adapter.file.name)
            graded, called = grading.called(scale, family, NOISES if adapter.finished else 1)
            if adapter.finished:
                graded += grading.uncalled(scale, family)
            family.pipeline().unload_lora_weights()
            when = {"step": adapter.step, "exposures": adapter.exposures, "seconds": round(adapter.seconds, 2)}
            rows += [dict(zip(report.KEY, task.key, strict=True)) | when | row for row in graded]
    save_grid(called, len(called), sheet)  # of the last
    gc.collect()
    return rows


def run(parsed: argparse.Namespace) -> None:
    """Run the planned trainings that are not in the CSV yet."""
    torch.set_num_threads(1)
    judge = judges.load(parsed.folder)
    recognizer = judges.Recognizer(judge, parsed.folder)
    family = load_base(parsed.base)
    scales: dict[str, Yardstick] = {}
    for task in waiting(parsed)[: parsed.count]:
        subject, started = subjects.find(parsed.folder, task.subject), time.monotonic()
        if subject.name not in scales:
            scales[subject.name] = grading.yardstick(parsed.folder, subject, judge, recognizer, family, parsed.prompts)
        sheet = report.strip(parsed.csv, task.key)
        try:
            rows = measure(task, subject, scales[subject.name], family, sheet=sheet, parsed=parsed)
        except UserError as error:  # a rate that is much too high
            print(f"{', '.join(task.key)}: {error}", flush=True)
            continue
        report.append(parsed.csv, rows)
        print(
            f"{', '.join(task.key)}: {rows[-1]['seconds']} CPU s of training, {time.monotonic() - started:.0f} s total",
            flush=True,
        )


def waiting(parsed: argparse.Namespace) -> list[Task]:
    """Return the planned trainings that are not in the CSV, without ablations that change nothing."""
    done = report.read(parsed.csv)
    tasks = []
    for task in plan(parsed.only, parsed.subjects, parsed.seeds):
        subject, recipe = subjects.find(parsed.folder, task.subject), RECIPES[task.recipe]
        if task.key not in done and (task.recipe not in ABLATIONS or recipes.changes(recipe, subject)):
            tasks.append(task)
    return tasks


def smoke() -> None:
    """Run everything once, with a tiny world, a hardly trained judge, and runs of a few steps."""
    with tempfile.TemporaryDirectory() as home:
        folder, scripts = Path(home), ROOT / "scripts" / "pretrain_micro"
        for name, count, seed in (("train", 120, 1), ("test", 60, 2)):
            drawing = ["node", scripts / "draw_world.mjs", folder / name, 128, count, 0, seed]
            subprocess.run([str(argument) for argument in drawing], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["node", scripts / "draw_examples.mjs", folder / "subjects", "all"], check=True)
        torch.set_num_threads(1)
        save_file(judges.train(folder, steps=10).state_dict(), folder / "judge.safetensors")
        figures = folder / "figures.csv"
        run(_arguments(["run", str(folder), str(figures), "--only", f"{OURS},kohya", "--subjects", "miraxo",
                        "--count", "2", "--steps", "2", "--prompts", "2"]))  # fmt: skip
        print(report.table(figures))
        report.sheet(figures, folder / "sheet.png", draw=0)


def _arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="run everything at tiny size")
    actions = parser.add_subparsers(dest="action")
    running, table, sheet = (actions.add_parser(name) for name in ("run", "table", "sheet"))
    running.add_argument("folder", type=Path, help="of the judge")
    for action in (running, table, sheet):
        action.add_argument("csv", type=Path)
    running.add_argument("--only", type=_listed, default=[], help=f"recipes, of: {', '.join(RECIPES)}")
    running.add_argument("--subjects", type=_listed, default=[*CHARACTERS, *STYLES])
    running.add_argument("--seeds", type=int, default=2)
    running.add_argument("--count", type=int, help="number of runs; default: all")
    running.add_argument("--prompts", type=int, default=PROMPTS, help="for each subject; the same in all of a CSV")
    running.add_argument("--steps", type=int, default=0, help="of each run instead of the recipe's")
    running.add_argument("--last", action="store_true", help="grade only the finished adapter of each run")
    running.add_argument("--base", default=MICRO, help="folder of another base model")
    running.add_argument("--faster", type=float, default=1.0, help="factor of each learning rate")
    sheet.add_argument("picture", type=Path)
    sheet.add_argument("--draw", type=int, default=0, help="seed that picks subject and prompts")
    return parser.parse_args(arguments)


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Run the action that the arguments name."""
    parsed = _arguments()
    if parsed.smoke:
        smoke()
    elif parsed.action == "run":
        run(parsed)
    elif parsed.action == "table":
        print(report.table(parsed.csv))
    else:
        report.sheet(parsed.csv, parsed.picture, draw=parsed.draw)


if __name__ == "__main__":
    main()
