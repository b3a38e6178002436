"""Grade the built-in base model, and what Limner's presets teach it, with the judge.

    python -m benchmarks.micro base JUDGE_FOLDER [--model FOLDER] [--count 192] [--guidance 3] [--grid PICTURE.png]
    python -m benchmarks.micro subject JUDGE_FOLDER miraxo|pixelArt|... [--set training.exposures=300] [--grid ...]

`base` prints, for each attribute: the judge's ceiling on renders, how often the base model draws what the prompt says,
and the floor (the same images against other prompts). `subject` trains an adapter with `limner train` on one of the
held-out subjects, and prints how often the judge sees it at several strengths, and without the trigger.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import judge as judges
from benchmarks import subjects
from scripts.pretrain_micro.pictures import save_grid
from trainer import families
from trainer.config import ModelConfig
from trainer.families import Family
from trainer.runs import Run

STRENGTHS = (0.0, 0.5, 1.0)
COUNT = 24


@torch.no_grad()
def draw(
    family: Family,
    prompts: Sequence[str],
    *,
    guidance: float,
    strength: float | None = None,
    negative: Sequence[str] = (),
) -> Tensor:
    """Generate images [n, 3, H, W] in -1..1, in 20 steps, each with a seed of its own and maybe a negative prompt."""
    drawn: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(prompts), 16):
        part, without = list(prompts[start : start + 16]), list(negative[start : start + 16]) or None
        output = family.pipeline()(
            part, negative_prompt=without, num_inference_steps=20, guidance_scale=guidance, output_type="np",
            generator=[torch.Generator().manual_seed(1000 + start + index) for index in range(len(part))],
            cross_attention_kwargs=None if strength is None else {"scale": strength},
        )  # fmt: skip
        drawn.extend(output.images)
        print(f"{start + len(part)}/{len(prompts)}", end="\r", file=sys.stderr)
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() * 2 - 1


def load_base(base: str) -> Family:
    """Load the base model to grade."""
    return families.load(ModelConfig(base=base), torch.device("cpu"), torch.float32)


def grade_base(parsed: argparse.Namespace) -> None:
    """Print ceiling, score and floor by attribute, and save a grid."""
    judge = judges.load(parsed.folder)
    prompts, truth = subjects.people(parsed.folder, parsed.count, parsed.seed)
    pictures = draw(load_base(parsed.model), prompts, guidance=parsed.guidance)
    ceiling, scores = judges.ceiling(judge, parsed.folder), judges.agreement(judge, pictures, truth)
    floor = judges.agreement(judge, pictures, truth[7:] + truth[:7])
    print(f"{'':12} ceiling  base  floor   ({parsed.count} prompts, guidance {parsed.guidance:g})")
    for name, share in scores.items():
        print(f"{name:12} {ceiling[name]:.3f}  {share:.3f}  {floor[name]:.3f}")
    if parsed.grid:
        save_grid(pictures[:48], 12, parsed.grid)


def train(parsed: argparse.Namespace, home: Path) -> Path:
    """Train with the preset through the command line; returns the adapter file and prints how long it took."""
    subject, config = subjects.find(parsed.folder, parsed.subject), home / "config.toml"
    config.write_text(
        f'name = "{subject.name}"\ndataset = "{subject.dataset}"\n'
        f'trigger = "{subject.trigger}"\npreset = "{subject.preset}"\n'
    )
    run = Run(home / "run")
    command = [sys.executable, "-m", "trainer", "train", str(config), "--run", str(run.folder)]
    for assignment in parsed.assignments:
        command += ["--set", assignment]
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "LIMNER_HOME": str(home)}, stderr=subprocess.DEVNULL)
    total = time.monotonic() - started
    log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    times = {event["kind"]: datetime.fromisoformat(event["time"]) for event in log}
    seconds = (times["finished"] - times["started"]).total_seconds()
    steps = max(event["step"] for event in log if event["kind"] == "step")
    print(f"{parsed.subject}: {steps} steps with previews in {seconds:.1f} s, the whole program {total:.1f} s")
    return run.export


def grade_subject(parsed: argparse.Namespace) -> None:
    """Train, then print the share of images that show the subject and the share that follow the prompt."""
    judge = judges.load(parsed.folder)
    subject, recognizer = subjects.find(parsed.folder, parsed.subject), judges.Recognizer(judge, parsed.folder)
    print("the recognizer names renders of characters and of others: {:.3f}, {:.3f}".format(*recognizer.accuracy))
    prompts, truth = subjects.people(parsed.folder, COUNT, parsed.seed)
    questions = subjects.questions(parsed.folder, subject, COUNT, parsed.seed)
    sees = subjects.watcher(subject, judge, recognizer)
    with tempfile.TemporaryDirectory() as home:
        adapter = train(parsed, Path(home))
        family = load_base(parsed.model)
        base = draw(family, questions.plain, guidance=3.0)
        family.pipeline().load_lora_weights(str(adapter.parent), weight_name=adapter.name)

    def line(pictures: Tensor) -> str:
        scores = judges.agreement(judge, pictures, questions.wanted)
        shares = "  ".join(f"{name} {share:.3f}" for name, share in scores.items())
        return f"seen {np.mean(sees(pictures)):.3f}   {shares}"

    print(f"base, no trigger: {line(base)}")
    rows, middles = [], []
    for strength in STRENGTHS:
        pictures = draw(family, questions.called, guidance=3.0, strength=strength)
        print(f"strength {strength:g}: {line(pictures)}", flush=True)
        rows.append(pictures[:12])
        with torch.no_grad():
            middles.append(judge.embed(pictures).mean(0))
    way = middles[-1] - middles[0]
    shares = [float((middle - middles[0]) @ way / (way @ way)) for middle in middles]
    listed = ", ".join(f"{strength:g}: {share:.2f}" for strength, share in zip(STRENGTHS, shares, strict=True))
    print(f"share of the way from the base to strength 1, by the judge's embedding: {listed}")
    untouched, leaked = (draw(family, prompts, guidance=3.0, strength=strength) for strength in (0.0, 1.0))
    kept = judges.agreement(judge, leaked, truth)
    print(
        f"without the trigger: seen {np.mean(sees(leaked)):.3f}, style as asked {kept['style']:.3f}, "
        f"change {(leaked - untouched).abs().mean():.3f}"
    )
    print(f"without the trigger and with few words: {line(draw(family, questions.plain, guidance=3.0, strength=1.0))}")
    if parsed.grid:
        save_grid(torch.cat([*rows, untouched[:12], leaked[:12]]), 12, parsed.grid)


def main() -> None:
    """Grade what the arguments name."""
    parser = argparse.ArgumentParser(description="Grade micro, and adapters on it.")
    kinds = parser.add_subparsers(required=True)
    base, subject = kinds.add_parser("base"), kinds.add_parser("subject")
    base.set_defaults(run=grade_base)
    subject.set_defaults(run=grade_subject)
    for command in (base, subject):
        command.add_argument("folder", type=Path)
        command.add_argument("--model", default="micro")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--grid", type=Path)
    base.add_argument("--count", type=int, default=192)
    base.add_argument("--guidance", type=float, default=3.0)
    subject.add_argument("subject")
    subject.add_argument("--set", dest="assignments", action="append", default=[], metavar="key.path=value")
    parsed = parser.parse_args()
    parsed.run(parsed)


if __name__ == "__main__":
    main()
