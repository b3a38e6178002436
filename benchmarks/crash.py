"""Workers killed at random moments, again and again: nothing is torn, nothing is lost but the last interval.

    python -m benchmarks.crash [--kills 300] [--seed N] [--steps 40] [--every 5]

A run on the built-in base is killed and resumed until it ends, then another one, until there were so many kills.
After each kill every file at a final name is read; each run that ends is compared, bit for bit, with one that was not
disturbed. Prints what was found; exit code 1 if anything was wrong.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.speed import PICTURES
from tests.workers import Workers
from trainer import config, runs
from trainer.adapter_files import reader
from trainer.runs import Run, events
from trainer.training import checkpoint


@dataclass
class Report:
    """What happened: kills, runs that ended, steps that were done twice, and faults in words."""

    kills: int = 0
    ended: int = 0
    steps: int = 0
    repeated: int = 0
    most_repeated: int = 0
    faults: list[str] = field(default_factory=list)


def make(steps: int, every: int) -> Run:
    """A short run on the built-in base."""
    return runs.create(
        config.build(
            {
                "name": "rin", "dataset": str(PICTURES), "trigger": "miraxo",
                "training": {"steps": steps, "batch_size": 2}, "adapter": {"rank": 4},
                "preview": {"every": 10, "steps": 2, "prompts": ["miraxo"]}, "checkpoint": {"every": every, "keep": 3},
            }
        )
    )  # fmt: skip


def crash(workers: Workers, kills: int, *, steps: int, every: int, rng: random.Random) -> Report:
    """Kill workers so many times, and tell what was found."""
    report, whole = Report(), make(steps, every)
    workers.work(make(1, every))  # fills the cache
    begun = time.monotonic()
    if workers.work(whole):
        report.faults.append("the undisturbed run failed")
        return report
    span = time.monotonic() - begun
    expected = load_file(whole.export)
    run = make(steps, every)
    while report.kills < kills:
        number = workers.start(run)
        time.sleep(rng.uniform(0, 0.6 * span))
        os.kill(number, signal.SIGKILL)
        ended = workers.wait() == 0
        report.kills += not ended
        report.faults += [f"kill {report.kills}: {fault}" for fault in torn(run)]
        if runs.look(run).state.end == "finished":
            compare(run, whole, expected, report)
            run = make(steps, every)
    if workers.work(run):
        report.faults.append("the last run could not be resumed")
    compare(run, whole, expected, report)
    return report


def torn(run: Run) -> list[str]:
    """Files at final names that are not whole."""
    found = [f"checkpoint {one.name} is torn" for one in checkpoint.folders(run) if not checkpoint.is_intact(one)]
    try:
        run.config()
        if run.export.exists():
            reader.read(run.export)
    except Exception as error:  # whatever it is, it is a fault
        found.append(f"{type(error).__name__}: {error}")
    return found


def compare(run: Run, whole: Run, expected: dict[str, Tensor], report: Report) -> None:
    """Add to the report what a run that ended shows against one that was not disturbed."""
    found = load_file(run.export)
    if found.keys() != expected.keys() or any(not found[key].equal(expected[key]) for key in found):
        report.faults.append(f"{run.id}: another adapter")
    if runs.look(run).state.losses != runs.look(whole).state.losses:
        report.faults.append(f"{run.id}: other losses")
    if litter := [str(one.relative_to(run.folder)) for one in run.folder.rglob("*.part")]:
        report.faults.append(f"{run.id}: left behind {litter}")
    logged = [event for event in events.read(run.log)[0] if event.kind in ("started", "step")]
    for before, after in pairwise(logged):
        if after.kind == "started" and before.kind == "step":
            lost = before.step - after.step
            report.repeated += lost
            report.most_repeated = max(report.most_repeated, lost)
            if lost > run.config().checkpoint.every:
                report.faults.append(f"{run.id}: {lost} steps were lost at once")
    report.ended += 1
    report.steps += len(logged)


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Kill workers at random moments and look at what is left.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMNER_HOME"] = folder
        Path(folder, "outputs").mkdir()
        workers = Workers()
        begun = time.monotonic()
        rng = random.Random(options.seed)
        report = crash(workers, options.kills, steps=options.steps, every=options.every, rng=rng)
        workers.close()
    print(f"seed {options.seed}, {time.monotonic() - begun:.0f} s: {report}")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
