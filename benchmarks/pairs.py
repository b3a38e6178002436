"""Teach micro two characters in one adapter, and measure whether each is called by its own word alone.

    python -m benchmarks.pairs JUDGE_FOLDER [--pairs miraxo+dovrek] [--prompts 24] [--sheet FOLDER] [--set KEY=VALUE]

For each pair of held-out characters the preset trains one adapter from both datasets (`subjects` in the config). The
recognizer of benchmarks/judge.py then names who is in images of prompts with the first word, with the second, and with
neither. Printed are the shares, with the interval that holds the true share in 95 % of cases (Wilson 1927).
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import judge as judges
from benchmarks import subjects
from benchmarks.grading import GUIDANCE, SEED
from benchmarks.judge import Recognizer
from benchmarks.micro import draw, load_base
from scripts.pretrain_micro.pictures import save_grid
from trainer import config as configs
from trainer import runs
from trainer.base_models import MICRO
from trainer.config import subject_lines
from trainer.data.dataset import Subject
from trainer.families import Family
from trainer.train import train

PAIRS = "miraxo+dovrek,tuvani+skelno,karune+velmor"
Z = 1.96  # of 95 %


def interval(hits: int, count: int) -> tuple[float, float]:
    """Return the Wilson interval of a share."""
    share, spread = hits / count, Z * Z / count
    middle, half = share + spread / 2, Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def taught(folder: Path, names: Sequence[str], home: Path, changes: Sequence[str]) -> Path:
    """Train one adapter on both characters with the preset; return its file and print what it took."""
    copies = [Path(shutil.copytree(subjects.find(folder, name).dataset, home / name)) for name in names]
    data = {
        "name": "pair",
        "dataset": str(copies[0]),
        "trigger": names[0],
        "subjects": [
            subject_lines.write(Subject(str(copy), name)) for copy, name in zip(copies[1:], names[1:], strict=True)
        ],
        "preview": {"every": 0},
    }
    run = runs.create(configs.build(configs.override(data, list(changes))), home / "run")
    started = time.process_time()
    train(run.config(), run)
    print(f"{'+'.join(names)}: {run.config().training.steps} steps, {time.process_time() - started:.0f} CPU s")
    return run.export


def counts(family: Family, recognizer: Recognizer, prompts: list[str], sheet: Path | None) -> dict[str, int]:
    """Generate an image of each prompt; return how often each character, or nobody, is recognized."""
    pictures = draw(family, prompts, guidance=GUIDANCE)
    if sheet:
        save_grid(pictures, 8, sheet)
    seen = recognizer.name(pictures)
    return {name: seen.count(name) for name in recognizer.words}


def main() -> None:
    """Measure each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the judge")
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--sheet", type=Path, help="folder for the images")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer(judges.load(parsed.folder), parsed.folder)
    print(f"recognized: {recognizer.accuracy[0]:.3f} of the characters, {recognizer.accuracy[1]:.3f} of others")
    family = load_base(MICRO)
    for pair in parsed.pairs.split(","):
        names = pair.split("+")
        with tempfile.TemporaryDirectory() as home:
            file = taught(parsed.folder, names, Path(home), parsed.changes)
            family.pipeline().load_lora_weights(str(file.parent), weight_name=file.name)
            for name in (*names, ""):
                questions = subjects.questions(
                    parsed.folder, subjects.find(parsed.folder, name or names[0]), parsed.prompts, SEED
                )
                sheet = parsed.sheet / f"{pair}-{name or 'plain'}.png" if parsed.sheet else None
                seen = counts(family, recognizer, questions.called if name else questions.plain, sheet)
                shares = []
                for who in names:
                    low, high = interval(seen[who], parsed.prompts)
                    shares.append(f"{who} {seen[who] / parsed.prompts:.2f} ({low:.2f} to {high:.2f})")
                print(f"  {name or 'neither word':14} {', '.join(shares)}", flush=True)
            family.pipeline().unload_lora_weights()


if __name__ == "__main__":
    main()
