"""Measure whether adapters hold at the guidance and strength that people use, on subjects that micro does not know.

    python -m benchmarks.designs JUDGE_FOLDER SHEET.png
    python -m benchmarks.guidance run JUDGE_FOLDER FIGURES.csv [--only ours,kohya] [--subjects linneq,woodcut]
        [--seeds 2] [--set key.path=value --label NAME] [--count 12]
    python -m benchmarks.guidance table FIGURES.csv

`run` trains each recipe (benchmarks/recipes.py) on each subject of benchmarks/designs.py, and grades the finished
adapter at guidance 1, 3, 5 and 7.5, at three strengths, and without its trigger; every other image has a usual negative
prompt. Trainings that are in the CSV are not repeated. Images are laid out beside it, a row for each condition.
benchmarks/judge.py says how to make JUDGE_FOLDER.

Likeness is 0 for the base model and 1 for real images, by the judge's embedding; of images without the trigger, more
than a half counts as a leak. Roughness is the energy of the finest details over that of real images: what guidance
breaks into shards or stains has more. Colors are compared with those of real images in the middle, 0 to 1.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import designs, grading, recipes, report, subjects
from benchmarks import judge as judges
from benchmarks.judge import Judge
from benchmarks.micro import draw, load_base
from benchmarks.quality import taught
from benchmarks.recipes import OURS, RECIPES, WIDTH
from benchmarks.subjects import Subject
from scripts.pretrain_micro.pictures import save_grid
from trainer import config as configs
from trainer.base_models import MICRO
from trainer.families import Family

NEGATIVE = "blurry, low quality, bad anatomy, watermark, text"
SEED = 20  # of the prompts
SHORT = ("portrait of a person", "a person", "a portrait", "face", "a character", "avatar of a person")
KEY = ("subject", "recipe", "seed")
COLUMNS = (
    *KEY,
    "seconds",
    "prompts",
    "guidance",
    "strength",
    "number",
    "likeness",
    "leak",
    "roughness",
    "colors",
    "adherence",
    "dark",
    "old",
)


@dataclass(frozen=True)
class Condition:
    """Guidance and strength that images are generated with, and the kind of their prompts."""

    prompts: str
    guidance: float
    strength: float = 1.0


CONDITIONS = (
    *(Condition("called", guidance) for guidance in (1.0, 3.0, 5.0, 7.5)),
    *(Condition("called", 5.0, strength) for strength in (0.7, 1.3)),
    *(Condition("plain", guidance) for guidance in (3.0, 7.5)),
    *(Condition("people", guidance) for guidance in (3.0, 7.5)),
    *(Condition("short", guidance) for guidance in (3.0, 7.5)),
)


def roughness(images: Tensor) -> Tensor:
    """Return the energy of the finest details of each image [n, 3, h, w]: of its difference from its own blur."""
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return ((images - blurred) ** 2).mean((1, 2, 3)) / 4


@dataclass(frozen=True)
class Yardstick:
    """References for the images of a subject."""

    judge: Judge
    prompts: dict[str, list[str]]
    likeness: grading.Ruler
    rough: float
    colors: Tensor  # [125], of real images
    wanted: list[dict[str, object]]

    def rows(self, condition: Condition, images: Tensor) -> list[dict[str, object]]:
        """Grade images of a condition."""
        named = self.judge.name(images)
        likeness = self.likeness.read(grading.embedded(self.judge, images)).tolist()
        matches: list[dict[str, bool]] = [{}] * len(named)
        if condition.prompts in ("called", "plain"):
            matches = judges.matches(self.judge, images, self.wanted)
        rough, colors = roughness(images) / self.rough, grading.colored(images) @ self.colors
        same = {"prompts": condition.prompts, "guidance": condition.guidance, "strength": condition.strength}
        return [
            {
                **same,
                "number": number,
                "likeness": likeness[number],
                "leak": int(likeness[number] > 0.5),
                "roughness": rough[number].item(),
                "colors": colors[number].item(),
                "adherence": sum(right.values()) / len(right) if right else "",
                "dark": int(seen["skin"] in ("brown", "dark")),
                "old": int(seen["hairColor"] in ("gray", "white")),
            }
            for number, (seen, right) in enumerate(zip(named, matches, strict=True))
        ]


def yardstick(folder: Path, subject: Subject, judge: Judge, family: Family, count: int) -> Yardstick:
    """Return the prompts of a subject, and what its real images and those of the base model are like."""
    questions = subjects.questions(folder, subject, count, SEED)
    short = [SHORT[number % len(SHORT)] for number in range(2 * count)]
    people = subjects.people(folder, count, SEED)[0]
    prompts = {"called": questions.called, "plain": questions.plain, "short": short, "people": people}
    files = sorted(subject.dataset.with_suffix(".real").glob("*.png"))
    real = torch.stack([grading.tensor(file) for file in files])
    drawn = draw(family, questions.plain, guidance=grading.GUIDANCE)
    likeness = grading.ruler(grading.embedded(judge, real), grading.embedded(judge, drawn))
    colors = functional.normalize(grading.colored(real).mean(0), dim=0)
    return Yardstick(judge, prompts, likeness, roughness(real).mean().item(), colors, list(questions.wanted))


def generate(family: Family, prompts: Sequence[str], condition: Condition, *, adapted: bool) -> Tensor:
    """Generate an image of each prompt, every other one with a negative prompt."""
    negative = [NEGATIVE * (number % 2) for number in range(len(prompts))]
    strength = condition.strength if adapted else None
    return draw(family, prompts, guidance=condition.guidance, strength=strength, negative=negative)


def grade(scale: Yardstick, family: Family, sheet: Path, *, adapted: bool) -> list[dict[str, object]]:
    """Grade all conditions, and lay their images out."""
    rows, laid = [], []
    for condition in CONDITIONS:
        images = generate(family, scale.prompts[condition.prompts], condition, adapted=adapted)
        rows += scale.rows(condition, images)
        laid.append(images[: len(scale.prompts["called"])])
    save_grid(torch.cat(laid), len(laid[0]), sheet)
    return rows


def run(parsed: argparse.Namespace) -> None:
    """Train and grade what is not in the CSV yet."""
    torch.set_num_threads(1)
    judge, family = judges.load(parsed.folder), load_base(MICRO)
    done = report.read(parsed.csv, KEY)
    for seed in range(parsed.seeds):
        for name in parsed.subjects:
            subject, scale = designs.find(parsed.folder, name), None
            for recipe in ("base", *parsed.only):
                label = f"{recipe}{parsed.label}" if recipe != "base" else recipe
                if (name, label, str(seed)) in done or (recipe == "base" and seed):
                    continue
                scale = scale or yardstick(parsed.folder, subject, judge, family, parsed.count)
                seconds, rows = one(parsed, subject, scale, family, recipe=recipe, seed=seed, label=label)
                key = dict(zip(KEY, (name, label, str(seed)), strict=True))
                report.append(parsed.csv, [{**key, "seconds": round(seconds, 2), **row} for row in rows], COLUMNS)
                print(f"{name}, {label}, seed {seed}: {seconds:.1f} CPU s", flush=True)


def one(
    parsed: argparse.Namespace,
    subject: Subject,
    scale: Yardstick,
    family: Family,
    *,
    recipe: str,
    seed: int,
    label: str,
) -> tuple[float, list[dict[str, object]]]:
    """Train a recipe, unless it is the base model itself, and grade it; returns its CPU seconds, too."""
    sheet = parsed.csv.with_suffix("") / f"{subject.name} {label} {seed}.png"
    if recipe == "base":
        return 0.0, grade(scale, family, sheet, adapted=False)
    rate = 1.0 if RECIPES[recipe].preset else WIDTH
    config = recipes.settings(RECIPES[recipe], subject, designs.TAUGHT, rate=rate, seed=seed)
    config = configs.check(type(config), configs.override(config.model_dump(exclude_unset=True), parsed.assignments))
    with tempfile.TemporaryDirectory() as home:
        [adapter] = taught(config, Path(home), designs.TAUGHT, (1,))
        family.pipeline().load_lora_weights(str(adapter.file.parent), weight_name=adapter.file.name)
        rows = grade(scale, family, sheet, adapted=True)
        family.pipeline().unload_lora_weights()
    return adapter.seconds, rows


FIGURES = (
    ("likeness", "called", (1.0, 3.0, 5.0, 7.5)),
    ("roughness", "called", (3.0, 5.0, 7.5)),
    ("colors", "called", (7.5,)),
    ("leak", "plain", (3.0, 7.5)),
    ("leak", "people", (3.0, 7.5)),
    ("leak", "short", (3.0, 7.5)),
    ("dark", "short", (3.0, 7.5)),
)
TITLES = {"dark": "dark skin"}


def table(path: Path, left_out: Sequence[str] = ()) -> str:
    """Format the figures as Markdown: a column for each recipe, with intervals over subjects, seeds and prompts."""
    runs = {key: rows for key, rows in report.read(path, KEY).items() if key[1] not in left_out}
    lines = []
    for kind in ("characters", "styles"):
        names = tuple(designs.DRAWN if kind == "characters" else designs.PRINTED)
        own = {key: rows for key, rows in runs.items() if key[0] in names}
        labels = list(dict.fromkeys(key[1] for key in own))
        of = {label: {key: rows for key, rows in own.items() if key[1] == label} for label in labels}
        lines += ["", f"| {kind} | {' | '.join(f'{label} ({len(of[label])})' for label in labels)} |"]
        lines.append("|---" * (len(labels) + 1) + "|")
        for column, prompts, guidances in FIGURES:
            for guidance in guidances:
                title = f"{TITLES.get(column, column)}, {prompts}, at {guidance:g}"
                cells = [_cell(of[label], column, prompts, guidance) for label in labels]
                lines.append(f"| {title} | {' | '.join(cells)} |")
        seconds = [np.mean([float(rows[0]["seconds"]) for rows in of[label].values()]) for label in labels]
        lines.append(f"| CPU seconds | {' | '.join(f'{mean:.0f}' for mean in seconds)} |")
    return "\n".join(lines[1:])


def _cell(runs: dict[report.Key, report.Rows], column: str, prompts: str, guidance: float) -> str:
    by_subject: dict[str, list[report.Array]] = {}
    for key, rows in runs.items():
        values = [
            float(row[column])
            for row in rows
            if row["prompts"] == prompts
            and float(row["guidance"]) == guidance
            and float(row["strength"]) == 1
            and row[column]
        ]
        by_subject.setdefault(key[0], []).append(np.array(values))
    mean, low, high = report.bootstrap(by_subject)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run the action that the arguments name."""
    parser, running = report.actions(__doc__)
    running.add_argument("--only", type=lambda text: text.split(","), default=[OURS, "kohya"])
    running.add_argument("--subjects", type=lambda text: text.split(","), default=list(designs.NAMES))
    running.add_argument("--count", type=int, default=12, help="prompts of a subject")
    running.add_argument("--set", dest="assignments", action="append", default=[], metavar="key.path=value")
    running.add_argument("--label", default="", help="added to the names of recipes with changed settings")
    parsed = parser.parse_args()
    if parsed.action == "run":
        run(parsed)
    else:
        print(table(parsed.csv))


if __name__ == "__main__":
    main()
