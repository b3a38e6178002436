"""Simulate many runs on many nodes that fail: how long does it take, and what do failures cost?

    python -m benchmarks.fleet [--runs 1000] [--nodes 100] [--days-to-failure 1] [--seed 0]

Real: the relay of each run with all that it does (placement, loss of a node, the mirror, requests), the run folders
with their logs and checkpoints, and the nodes with the parcels that they keep. Pretended: the time, which jumps to what
happens next; the workers, which write the events and checkpoints of steps that nobody computes; the power cuts; and
Ray, which gives free nodes to those who have waited longest, and notices a dead node after a while.
"""

import argparse
import heapq
import io
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.numpy

from limner_extensions.cluster import relay
from limner_extensions.cluster.node import News, Node, NodeLostError
from tests.conftest import CHARACTER
from trainer import config, runs, storage
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import Run, events

LOOKED = 30.0  # seconds between two looks of a relay, which are 0.3 in truth
START = 60.0  # seconds from a node to the first step: imports, the base model, latents
STEP = 1.0  # seconds
STEPS = (600, 1000, 1500, 2500)  # of a run
SAVED = 100  # steps between checkpoints, as by default
REPAIR = 1800.0  # seconds that a node is away
NOTICED = 10.0  # seconds until Ray notices a dead node
DAY = 86_400.0


class Clock:
    """Simulated time: one thread goes on at a time, and sleeping is what lets the next one go on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleeping: list[tuple[float, int, threading.Event]] = []
        self._number = count()
        self._idle = threading.Semaphore(0)
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object], at: float = 0.0) -> None:
        """Begin with something at a time, in a thread."""
        turn = self._turn(at)

        def go() -> None:
            turn.wait()
            try:
                work()
            except BaseException as error:
                self._error = error
            finally:
                self._idle.release()

        threading.Thread(target=go, daemon=True).start()

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`."""
        turn = self._turn(self.now + seconds)
        self._idle.release()
        turn.wait()

    def _turn(self, at: float) -> threading.Event:
        turn = threading.Event()
        heapq.heappush(self._sleeping, (at, next(self._number), turn))
        return turn

    def run(self) -> None:
        """Let time pass until nobody sleeps."""
        while self._sleeping:
            self.now, _number, turn = heapq.heappop(self._sleeping)
            turn.set()
            self._idle.acquire()
            if self._error:
                raise self._error


@dataclass
class Machine:
    """A machine of the cluster, which is dead at times; `epoch` counts how often it was."""

    root: Path
    epoch: int = 0
    dead: bool = False
    busy: bool = False
    noticed: float = 0.0
    node: "SimulatedNode | None" = None


class SimulatedNode(Node):
    """A node with a worker that needs no time of this machine."""

    def __init__(self, machine: Machine, clock: Clock, tally: "Tally") -> None:
        super().__init__(machine.root)
        self.machine, self._epoch, self._clock, self._tally = machine, machine.epoch, clock, tally
        self._reported, self._first, self._steps, self._began = 0, 0, 0, 0.0
        self._finished = False

    def begin(self) -> None:
        """Resume from the last checkpoint that is here."""
        self._check()
        (self._run.folder / "ask").mkdir(exist_ok=True)
        folders = sorted((self._run.folder / "checkpoints").glob("*"))
        self._first = self._reported = int(folders[-1].name) if folders else 0
        self._began, self._steps = self._clock.now + START, self._run.config().training.steps
        self._run.report(events.Started(step=self._first, steps=self._steps, pid=1, device="simulated"))

    def news(self, *values: Any) -> News:  # noqa: ANN401 - as of a node
        """Report the steps that were done by now."""
        self._check()
        if not self._steps:
            return super().news(*values)
        done = self._done()
        for step in range(self._reported + 1, done + 1):
            self._tally.steps += 1
            if step % SAVED == 0 or step == self._steps:
                storage.write_folder(self._run.folder / "checkpoints" / f"{step:06d}", _save)
                self._run.report(events.Checkpoint(step=step, folder=f"checkpoints/{step:06d}"))
                for old in sorted((self._run.folder / "checkpoints").glob("[0-9]*"))[:-2]:
                    storage.remove_folder(old)
        if done > self._reported:
            seconds = STEP * (done - self._reported)
            self._run.report(events.Step(step=done, loss=1, learning_rate=1e-4, grad_norm=1, seconds=seconds, memory=0))
        if done == self._steps and not self._finished:  # also if the last checkpoint came back, but not the end
            self._finished = True
            self._run.report(events.Finished(step=done, export="x.safetensors"))
        self._reported = done
        news = super().news(*values)
        return News(**{**vars(news), "code": 0 if done == self._steps else None})

    def _done(self) -> int:
        """Return how many steps are done by now."""
        return min(self._steps, self._first + max(0, int((self._clock.now - self._began) / STEP)))

    def lose(self) -> None:
        """Count the steps that nobody was told of."""
        self._tally.losses += 1
        self._tally.steps += self._done() - self._reported

    def receive(self, *values: Any, **named: Any) -> None:  # noqa: ANN401 - as of a node
        """Count what is sent."""
        self._tally.parcels += 1 if named["last"] else 0
        super().receive(*values, **named)

    def end(self) -> None:
        """Leave the machine to others."""
        super().end()
        if self.machine.epoch == self._epoch:
            self.machine.busy = False

    def _check(self) -> None:
        if self.machine.dead or self.machine.epoch != self._epoch:
            raise NodeLostError("the power is gone")


def _save(folder: Path) -> None:
    storage.write(folder / "adapter.safetensors", safetensors.numpy.save({}))  # which a relay checks
    for name in ("optimizer.safetensors", "manifest.json"):
        storage.write(folder / name, b"x" * 100)


@dataclass
class Tally:
    """Counts of what happened to all runs and nodes."""

    steps: int = 0
    parcels: int = 0
    losses: int = 0
    misses: int = 0
    failed: int = 0
    waited: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


@dataclass
class Fleet:
    """The cluster: a free machine goes to who has waited longest."""

    machines: list[Machine]
    clock: Clock
    tally: Tally
    line: deque[int] = field(default_factory=deque)
    numbers: Any = field(default_factory=count)

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        """As `RayCluster.place`."""
        number = next(self.numbers)
        self.line.append(number)
        while True:
            free = [machine for machine in self.machines if not machine.busy and self.seems_alive(machine)]
            if number in list(self.line)[: len(free)]:
                break
            wait()
        self.line.remove(number)
        free[0].busy = True
        if free[0].dead:
            self.tally.misses += 1
            self.clock.sleep(free[0].noticed - self.clock.now)
            free[0].busy = False
            raise NodeLostError("dead before it began")
        free[0].node = SimulatedNode(free[0], self.clock, self.tally)
        return free[0].node

    def seems_alive(self, machine: Machine) -> bool:
        """Tell whether the cluster takes a machine for alive."""
        return not machine.dead or self.clock.now < machine.noticed

    def live(self, machine: Machine, chance: random.Random, mean: float, is_over: Callable[[], bool]) -> None:
        """Have a machine fail and come back until all runs have ended."""
        while True:
            self.clock.sleep(chance.expovariate(1 / mean))
            if is_over():
                return
            if machine.busy and machine.node:
                machine.node.lose()
            machine.dead, machine.noticed = True, self.clock.now + NOTICED
            machine.epoch += 1
            machine.busy = False  # as the cluster sees it
            self.clock.sleep(REPAIR)
            machine.dead = False


def simulate(options: argparse.Namespace, home: Path) -> dict[str, str]:
    """Run the simulation in a home folder; return its figures."""
    chance, clock, tally = random.Random(options.seed), Clock(), Tally()
    machines = [Machine(home / "nodes" / str(number)) for number in range(options.nodes)]
    fleet = Fleet(machines, clock, tally)
    relay.time, relay.EVERY = clock, LOOKED  # type: ignore[assignment]
    planned = 0

    def work(run: Run) -> None:
        try:
            relay.work(run, fleet)
        except UserError:
            tally.failed += 1
        view = runs.look(run)
        assert view.status != "finished" or view.state.step == run.config().training.steps
        tally.ended.append(clock.now)

    for number in range(options.runs):
        steps = chance.choice(STEPS)
        planned += steps
        settings = config.build({"name": f"r{number}", "dataset": "rin", "training": {"steps": steps}})
        run = runs.create(settings, home / "outputs" / f"run-{number:04d}", cluster="simulated")
        clock.start(lambda run=run: work(run))
    if options.days_to_failure:
        for machine in machines:
            mean, seed = options.days_to_failure * DAY, random.Random(chance.random())
            clock.start(lambda machine=machine, mean=mean, seed=seed: fleet.live(
                machine, seed, mean, lambda: len(tally.ended) == options.runs))  # fmt: skip
    clock.run()
    files = 2 * len(dataset.image_files(home / "datasets" / "rin"))  # with a caption each
    finished = sum(runs.look(run).status == "finished" for run in runs.all_runs())
    ideal = (planned * STEP + options.runs * START) / options.nodes
    return {
        "runs finished": f"{finished} of {options.runs}",
        "hours until the last": f"{max(tally.ended) / 3600:.1f} (without failures and idle nodes: {ideal / 3600:.1f})",
        "nodes lost with a run on them": str(tally.losses),
        "placed on a node that was dead already": str(tally.misses),
        "steps computed again": f"{tally.steps - planned} ({(tally.steps - planned) / planned:.2%})",
        "runs that gave up": str(tally.failed),
        "files of datasets sent": f"{tally.parcels} (if each run brought its own: {options.runs * files})",
    }


def main() -> None:
    """Print the figures of a simulation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--days-to-failure", type=float, default=1.0, help="mean, of each node; 0 = never")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["LIMNER_HOME"] = folder
        (home / "outputs").mkdir()
        shutil.copytree(CHARACTER, home / "datasets" / "rin", ignore=shutil.ignore_patterns(".*"))
        threading.stack_size(256 * 1024)
        print(f"{options.runs} runs, {options.nodes} nodes, each failing every {options.days_to_failure:g} days")
        with redirect_stderr(io.StringIO()):  # what each relay says of its node
            figures = simulate(options, home)
        for name, figure in figures.items():
            print(f"{name:40}{figure}")


if __name__ == "__main__":
    sys.exit(main())
