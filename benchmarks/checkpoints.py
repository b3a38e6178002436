"""Compare the checkpoints of a run by the judge: would one with a low held-out loss have been the better choice?

    python -m benchmarks.checkpoints run JUDGE_FOLDER FIGURES.csv [--subjects miraxo,dylan] [--seeds 2]
    python -m benchmarks.checkpoints table FIGURES.csv

`run` trains each subject with the preset, and grades the checkpoints at an eighth, a quarter, a half and the end of the
run by the judge (benchmarks/judge.py says how to make JUDGE_FOLDER). Some images are held out, and their loss is
measured at each eighth, so that the checkpoint at which `held_out.patience` would have ended the run is graded too.
Runs that are in the CSV are not repeated.

The judge's score of a checkpoint is the share of images with the trigger that show the subject, times what they show
of their prompt, less the share of those without it that show the subject. `table` says what the last checkpoint, the
one with the lowest held-out loss, the one where the run would have ended and the best possible choice score, and what
each gains over the last, with 95 % intervals.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import grading, quality, recipes, report, subjects
from benchmarks import judge as judges
from benchmarks.grading import Yardstick
from benchmarks.micro import load_base
from benchmarks.recipes import OURS, RECIPES
from benchmarks.subjects import CHARACTERS, MEASURED, STYLES, Subject
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.config.adjustments import planned_steps
from trainer.config.data import HeldOutConfig
from trainer.data import dataset
from trainer.families import Family
from trainer.runs import Run, events
from trainer.runs.checkpoints import ADAPTER
from trainer.training import held_out

HELD_OUT = 0.15  # share of a subject's images
PATIENCE = 2  # measurements without a new lowest loss

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


def lines(subject: Subject, scale: Yardstick, family: Family, seed: int) -> list[Line]:
    """Train a subject, and grade its checkpoints."""
    pictures = len(dataset.read(subject.dataset))
    config = holding_out(recipes.settings(RECIPES[OURS], subject, pictures, rate=1.0, seed=seed), pictures)
    with tempfile.TemporaryDirectory() as home:
        steps = [adapter.step for adapter in quality.taught(config, Path(home), pictures, quality.PARTS)]
        run = Run(Path(home) / "run")
        losses = {event.step: event.loss for event in events.read(run.log)[0] if isinstance(event, events.HeldOut)}
        end = ends(losses, last=steps[-1])
        steps = sorted({*steps, end})
        files = {step: run.folder / "checkpoints" / f"{step:06d}" / ADAPTER for step in steps}
        graded = {step: judged(scale, family, file) for step, file in files.items()}
    return [
        {"subject": subject.name, "seed": seed, "step": step}
        | {name: round(value, 4) for name, value in graded[step].items()}
        | {"held out": round(losses[step], 5), "ends": end}
        for step in steps
    ]


def holding_out(config: TrainConfig, pictures: int) -> TrainConfig:
    """Hold out some of the images and measure them at each eighth of the run, which has as many steps as with all."""
    steps = planned_steps(config.training, pictures)
    return config.model_copy(update={
        "training": config.training.model_copy(update={"steps": steps}),
        "held_out": HeldOutConfig(share=HELD_OUT, every=max(1, steps // quality.PARTS[0])),
    })  # fmt: skip


def ends(losses: Mapping[int, float], *, last: int) -> int:
    """Return the step at which a run with this patience ends; `losses` are those of held-out images by step."""
    for step in sorted(losses):
        if held_out.is_over({earlier: loss for earlier, loss in losses.items() if earlier <= step}, PATIENCE):
            return step
    return last


def lowest(checkpoints: Sequence[Line]) -> Line:
    """Return the checkpoint with the lowest loss of held-out images."""
    return min(checkpoints, key=lambda line: float(line["held out"]))


def ended(checkpoints: Sequence[Line]) -> Line:
    """Return the checkpoint at which the run would have ended."""
    return next(line for line in checkpoints if int(line["step"]) == int(line["ends"]))


def last(checkpoints: Sequence[Line]) -> Line:
    """Return the last checkpoint."""
    return max(checkpoints, key=lambda line: int(line["step"]))


def best(checkpoints: Sequence[Line]) -> Line:
    """Return the checkpoint that the judge scores best."""
    return max(checkpoints, key=lambda line: float(line["score"]))


CHOICES: dict[str, Callable[[Sequence[Line]], Line]] = {
    "last": last,
    "lowest held-out loss": lowest,
    "where it would end": ended,
    "best possible": best,
}


def table(figures: Path) -> str:
    """Return what each choice scores in each run, and what it gains over the last checkpoint, with 95 % intervals."""
    runs = read(figures)
    lines = [f"| subject | seed | {' | '.join(CHOICES)} |", "|" + "---|" * (2 + len(CHOICES))]
    gains: dict[str, dict[str, list[report.Array]]] = {name: {} for name in CHOICES}
    for (subject, seed), checkpoints in runs.items():
        chosen = {name: choice(checkpoints) for name, choice in CHOICES.items()}
        scores = {name: float(line["score"]) for name, line in chosen.items()}
        cells = " | ".join(f"{scores[name]:.2f} (step {line['step']})" for name, line in chosen.items())
        lines.append(f"| {subject} | {seed} | {cells} |")
        for name, gained in gains.items():
            gained.setdefault(subject, []).append(np.array([scores[name] - scores["last"]]))
    if runs:
        means = (float(np.mean([float(choice(run)["score"]) for run in runs.values()])) for choice in CHOICES.values())
        lines.append("| mean | | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
        intervals = ("{:+.3f} ({:+.3f} to {:+.3f})".format(*report.bootstrap(gains[name])) for name in CHOICES)
        lines.append("| gain | | " + " | ".join(intervals) + " |")
        saved = [1 - int(ended(run)["step"]) / int(last(run)["step"]) for run in runs.values()]
        lines += ["", f"Steps that ending there would save: {np.mean(saved):.0%} of {len(runs)} runs."]
    return "\n".join(lines)


def read(figures: Path) -> dict[report.Key, report.Rows]:
    """Read the checkpoints of each run, by subject and seed."""
    return report.read(figures, ("subject", "seed"))


def append(figures: Path, rows: Sequence[Line]) -> None:
    """Add rows to a CSV."""
    names = ["subject", "seed", "step", "seen", "followed", "leaks", "score", "held out", "ends"]
    report.append_as_they_are(figures, rows, names)


def main() -> None:
    """Run the action that the arguments name."""
    parser, running = report.actions(__doc__)
    everyone = [*CHARACTERS, *MEASURED, *STYLES]
    running.add_argument("--subjects", type=lambda text: text.split(","), default=everyone)
    options = parser.parse_args()
    if options.action == "table":
        print(table(options.csv))
        return
    torch.set_num_threads(1)
    judge = judges.load(options.folder)
    recognizer = judges.Recognizer(judge, options.folder)
    family = load_base(MICRO)
    for seed, name in itertools.product(range(options.seeds), options.subjects):
        if (name, str(seed)) in read(options.csv):
            continue
        subject, started = subjects.find(options.folder, name), time.monotonic()
        scale = grading.yardstick(options.folder, subject, judge, recognizer, family, grading.PROMPTS)
        append(options.csv, lines(subject, scale, family, seed))
        print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
