"""Compare what `limner measure` says about checkpoints with the judge: would its figures have chosen a better one?

    python -m benchmarks.checkpoints run JUDGE_FOLDER FIGURES.csv [--subjects miraxo,dylan] [--images 16] [--features F]
    python -m benchmarks.checkpoints table FIGURES.csv

`run` trains each subject with the preset, measures the checkpoints at an eighth, a quarter, a half and the end of the
run as a user would, and grades the same checkpoints by the judge (benchmarks/judge.py says how to make JUDGE_FOLDER).
The measuring never sees the judge: it has to work where there is none.

The judge's score of a checkpoint is the share of images with the trigger that show the subject, times what they show
of their prompt, less the share of those without it that show the subject. `table` says what the last checkpoint, the
measured choice and the best possible choice score. The measured choice is the checkpoint that is clearly better than
the last one in most measures and clearly worse in none, or the last one.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import grading, quality, recipes, subjects
from benchmarks import judge as judges
from benchmarks.grading import Yardstick
from benchmarks.micro import load_base
from benchmarks.recipes import OURS, RECIPES
from benchmarks.subjects import CHARACTERS, STYLES, Subject
from trainer import measuring
from trainer.base_models import MICRO
from trainer.data import dataset
from trainer.families import Family
from trainer.measuring import MeasureConfig, Table
from trainer.measuring.measure import measure
from trainer.runs import Run

Line = dict[str, Any]


def judged(scale: Yardstick, family: Family, file: Path) -> dict[str, float]:
    """Grade one adapter: share seen, prompt followed, and leak."""
    family.pipeline().load_lora_weights(str(file.parent), weight_name=file.name)
    called, _images = grading.called(scale, family, grading.NOISES)
    uncalled = grading.uncalled(scale, family)
    family.pipeline().unload_lora_weights()
    seen, followed = _mean(called, "seen"), _mean(called, "adherence")
    leak = _mean(uncalled, "seen")
    return {"seen": seen, "followed": followed, "leaks": leak, "score": seen * followed - leak}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)


def lines(subject: Subject, scale: Yardstick, family: Family, options: argparse.Namespace) -> list[Line]:
    """Train a subject, measure its checkpoints, and grade them."""
    pictures = len(dataset.read(subject.dataset))
    config = recipes.settings(RECIPES[OURS], subject, pictures, rate=1.0, seed=options.seed)
    with tempfile.TemporaryDirectory() as home:
        taught = list(quality.taught(config, Path(home), pictures, quality.PARTS))
        run = Run(Path(home) / "run")
        run.save_config(run.config().model_copy(update={"preview": config.preview}))  # not of a single step
        steps = tuple(adapter.step for adapter in taught)
        started = time.process_time()
        measure(measuring.create(run, MeasureConfig(images=options.images, features=options.features, steps=steps)))
        seconds = time.process_time() - started
        table = measuring.read_table(run)
        assert table is not None
        graded = {adapter.step: judged(scale, family, adapter.file) for adapter in taught}
    return [
        {"subject": subject.name, "seed": options.seed, "step": step, "cpu": round(seconds)}
        | {name: round(value, 4) for name, value in graded[step].items()}
        | measured(table, step)
        for step in steps
    ]


def measured(table: Table, step: int) -> Line:
    """Return the figures of a checkpoint, and in which measures it is clearly better or worse than the last one."""
    row = next(row for row in table.rows if row.step == step)
    figures: Line = {f"measured {name}": round(figure.value, 4) for name, figure in row.figures.items()}
    return figures | {"better": " ".join(row.better), "worse": " ".join(row.worse)}


def choose(checkpoints: Sequence[Line]) -> Line:
    """Return the measured choice among the checkpoints of a run, the last one last."""
    *others, last = sorted(checkpoints, key=lambda line: int(line["step"]))
    good = [line for line in others if line["better"] and not line["worse"]]
    return max(good, key=lambda line: (len(line["better"].split()), int(line["step"])), default=last)


def table(figures: Path) -> str:
    """Return the judge's score of the last checkpoint, of the measured choice and of the best one, by subject."""
    with figures.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs: dict[tuple[str, str], list[Line]] = {}
    for row in rows:
        runs.setdefault((row["subject"], row["seed"]), []).append(row)
    lines = ["| subject | seed | last | measured choice | best possible |", "|---|---|---|---|---|"]
    totals = [0.0, 0.0, 0.0]
    for (subject, seed), checkpoints in runs.items():
        last = max(checkpoints, key=lambda line: int(line["step"]))
        best = max(checkpoints, key=lambda line: float(line["score"]))
        cells = [(float(line["score"]), line["step"]) for line in (last, choose(checkpoints), best)]
        totals = [total + score for total, (score, _step) in zip(totals, cells, strict=True)]
        scores = " | ".join(f"{score:.2f} (step {step})" for score, step in cells)
        lines.append(f"| {subject} | {seed} | {scores} |")
    if runs:
        lines.append("| mean | | " + " | ".join(f"{total / len(runs):.2f}" for total in totals) + " |")
    return "\n".join(lines)


def append(figures: Path, rows: Sequence[Line]) -> None:
    """Add rows to a CSV; a measure that has no figures is left empty."""
    names = ["subject", "seed", "step", "cpu", "seen", "followed", "leaks", "score"]
    names += [f"measured {name}" for name in measuring.MEASURES] + ["better", "worse"]
    new = not figures.exists()
    with figures.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the action that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    running, printing = actions.add_parser("run"), actions.add_parser("table")
    running.add_argument("folder", type=Path, help="of the judge")
    for action in (running, printing):
        action.add_argument("csv", type=Path)
    running.add_argument("--subjects", type=lambda text: text.split(","), default=[*CHARACTERS, *STYLES])
    running.add_argument("--images", type=int, default=MeasureConfig().images)
    running.add_argument("--features", default="", help="folder of a feature model")
    running.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.action == "table":
        print(table(options.csv))
        return
    torch.set_num_threads(1)
    judge = judges.load(options.folder)
    recognizer = judges.Recognizer(judge, options.folder)
    family = load_base(MICRO)
    for name in options.subjects:
        subject, started = subjects.find(options.folder, name), time.monotonic()
        scale = grading.yardstick(options.folder, subject, judge, recognizer, family, grading.PROMPTS)
        append(options.csv, lines(subject, scale, family, options))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
