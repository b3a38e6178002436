"""Kill workers at random moments, again and again: no file may be torn, and only the last interval may be lost.

    python -m benchmarks.crash [--kills 300] [--seed N] [--steps 40] [--every 5]

A run on the built-in base model is killed and resumed until it ends, then another one, for the given number of kills.
After each kill every file with a final name is read; each run that ends is compared, bit for bit, with an undisturbed
one. Prints a report; exit code 1 if anything was wrong.
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
    """Counts of kills, runs that ended and steps that were repeated, and descriptions of faults."""

    kills: int = 0
    ended: int = 0
    steps: int = 0
    repeated: int = 0
    most_repeated: int = 0
    faults: list[str] = field(default_factory=list)


def make(steps: int, every: int) -> Run:
    """Create a short run on the built-in base model."""
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
    """Kill workers this many times and report what was found."""
    report, whole = Report(), make(steps, every)
    workers.work(make(1, every))  # fills the cache
    started = time.monotonic()
    if workers.work(whole):
        report.faults.append("the undisturbed run failed")
        return report
    duration = time.monotonic() - started
    expected = load_file(whole.export)
    run = make(steps, every)
    while report.kills < kills:
        pid = workers.start(run)
        time.sleep(rng.uniform(0, 0.6 * duration))
        os.kill(pid, signal.SIGKILL)
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
    """Describe files with final names that are not complete."""
    faults = [
        f"checkpoint {folder.name} is torn" for folder in checkpoint.folders(run) if not checkpoint.is_intact(folder)
    ]
    try:
        run.config()
        if run.export.exists():
            reader.read(run.export)
    except Exception as error:  # any error is a fault
        faults.append(f"{type(error).__name__}: {error}")
    return faults


def compare(run: Run, whole: Run, expected: dict[str, Tensor], report: Report) -> None:
    """Compare a run that ended with an undisturbed one, and add the differences to the report."""
    adapter = load_file(run.export)
    if adapter.keys() != expected.keys() or any(not adapter[key].equal(expected[key]) for key in adapter):
        report.faults.append(f"{run.id}: a different adapter")
    if runs.look(run).state.losses != runs.look(whole).state.losses:
        report.faults.append(f"{run.id}: different losses")
    if leftovers := [str(path.relative_to(run.folder)) for path in run.folder.rglob("*.part")]:
        report.faults.append(f"{run.id}: left behind {leftovers}")
    logged = [event for event in events.read(run.log)[0] if event.kind in ("started", "step")]
    for before, after in pairwise(logged):
        if after.kind == "started" and before.kind == "step":
            lost = before.step - after.step
            report.repeated += lost
            report.most_repeated = max(report.most_repeated, lost)
            if lost > run.config().checkpoint.every:
                report.faults.append(f"{run.id}: lost {lost} steps at once")
    report.ended += 1
    report.steps += len(logged)


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Kill workers at random moments and check what is left.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMNER_HOME"] = folder
        Path(folder, "outputs").mkdir()
        workers = Workers()
        started = time.monotonic()
        rng = random.Random(options.seed)
        report = crash(workers, options.kills, steps=options.steps, every=options.every, rng=rng)
        workers.close()
    print(f"seed {options.seed}, {time.monotonic() - started:.0f} s: {report}")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
