"""Faults, as a comma-separated list; each strikes once.

nan@12      step 12 has a loss that is not a number
fault@3     the device fails in step 3
full@1      the optimizer runs out of memory in step 1
hang@5      step 5 never ends
stuck@2     the run hangs before its second report of a phase
enospc@2    the disk is full when the second durable file is opened
eio@2       the disk breaks when the second durable file is synced
kill@9      the process is killed before the ninth sync, rename or removal of a folder, as in a power cut
cards@2     the machine has two cards, which are chosen between like real ones; computing is on the CPU
"""

import errno
import importlib.abc
import importlib.machinery
import itertools
import math
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import ModuleType

VARIABLE = "TEST_FAULTS"
NO_MEMORY = "DefaultCPUAllocator: not enough memory: this is a test"
NO_DEVICE = "CUDA error: unspecified launch failure: this is a test"


class Faults:
    """The faults that have not struck yet, and how to undo what was changed for them."""

    def __init__(self, text: str) -> None:
        self.left = set(text.split(","))
        self.undo: list[Callable[[], None]] = []
        self.step = 0  # that is computed
        self.opened, self.synced, self.changes, self.phases = (itertools.count(1) for _ in range(4))
        # What to do with a module of the program once it is imported.
        self.modules = {
            "trainer.training.optimizer_step": self.in_steps,
            "trainer.runs.run": self.in_phases,
            "trainer.runs.cards": self.in_cards,
            "trainer.storage": self.in_files,
        }

    def strikes(self, kind: str, number: int) -> bool:
        """Return True if a fault is due now."""
        fault = f"{kind}@{number}"
        if fault not in self.left:
            return False
        self.left.remove(fault)
        return True

    def set(self, owner: object, name: str, value: object) -> None:
        """Change an attribute of a module or class."""
        original = getattr(owner, name)
        setattr(owner, name, value)
        self.undo.append(lambda: setattr(owner, name, original))

    def before(self, owner: object, name: str, act: Callable[..., None]) -> None:
        """Call `act` before a function of a module or class, with its arguments."""
        original = getattr(owner, name)

        @wraps(original)
        def with_fault(*arguments: object, **options: object) -> object:
            act(*arguments)
            return original(*arguments, **options)

        self.set(owner, name, with_fault)

    def in_steps(self, optimizer_step: ModuleType) -> None:
        """Have the faults of steps."""

        def compute(*arguments: Sequence[tuple[int, int]]) -> None:
            self.step = arguments[-1][0][0] + 1
            if self.strikes("fault", self.step):
                raise RuntimeError(NO_DEVICE)
            if self.strikes("hang", self.step):
                hang()

        def advance(*_: object) -> None:
            if self.strikes("full", self.step):
                raise RuntimeError(NO_MEMORY)

        def add(_readings: object, step: int, loss: "torch.Tensor", *_: object) -> None:  # noqa: F821 - imported late
            if self.strikes("nan", step):
                loss.fill_(math.nan)

        self.before(optimizer_step, "micro_batches", compute)
        self.before(optimizer_step, "advance", advance)
        self.before(optimizer_step.Readings, "add", add)

    def in_phases(self, run: ModuleType) -> None:
        """Have the faults of what comes before the first step."""

        def report(*_: object) -> None:
            if self.strikes("stuck", next(self.phases)):
                hang()

        self.before(run.Run, "progress", report)

    def in_files(self, storage: ModuleType) -> None:
        """Have the faults of durable files."""

        def open_file(path: Path, mode: str = "r", *_: object) -> None:
            if mode == "xb" and path.suffix == storage.PART and self.strikes("enospc", next(self.opened)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def sync(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and self.strikes("eio", next(self.synced)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def change(*_: object) -> None:
            if self.strikes("kill", next(self.changes)):
                os.kill(os.getpid(), signal.SIGKILL)

        self.before(Path, "open", open_file)
        self.before(os, "fsync", sync)
        for owner, name in ((os, "fsync"), (storage, "replace"), (shutil, "rmtree")):
            self.before(owner, name, change)

    def in_cards(self, cards: ModuleType) -> None:
        """Have as many cards as asked for."""
        count = next((int(fault.removeprefix("cards@")) for fault in self.left if fault.startswith("cards@")), 0)
        if count:
            known = tuple(cards.Card(str(number), str(number)) for number in range(count))
            self.set(cards, "known", lambda: known)
            self.set(cards, "HIP", cards.CUDA)  # CUDA's variable selects them, whatever torch is built for


def hang() -> None:
    while True:
        time.sleep(60)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have faults, and puts them in as soon as a module is imported."""

    def __init__(self, faults: Faults) -> None:
        self.modules = faults.modules

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_with_faults(module: ModuleType) -> None:
            execute(module)
            self.modules[name](module)

        spec.loader.exec_module = execute_with_faults
        return spec


def install(text: str) -> Callable[[], None]:
    """Have some faults in this process from now on; return what removes them."""
    faults = Faults(text)
    finder = Finder(faults)
    sys.meta_path.insert(0, finder)
    for name, put_in in faults.modules.items():
        if name in sys.modules:
            put_in(sys.modules[name])

    def remove() -> None:
        sys.meta_path.remove(finder)
        for undo in reversed(faults.undo):
            undo()

    return remove
