"""NVIDIA cards and the installed torch: say in one sentence why a card is not used, and the command that changes it.

Torch-free, so that the page can ask it too: the cards come from the driver's own program, and what torch was built for
from a small file of its package.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from trainer import processes
from trainer.i18n import _

INDEX = "https://download.pytorch.org/whl/"
BUILD, OLD_BUILD = "cu130", "cu126"  # builds of torch there; the old one is for older cards and drivers
TURING, BLACKWELL = (7, 5), (10, 0)  # compute capabilities of the RTX 20 and RTX 50 series
# The oldest driver for each major version of CUDA (CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required
# Driver Version for CUDA Minor Version Compatibility").
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
PROGRAMS = ("nvidia-smi", r"C:\Windows\System32\nvidia-smi.exe", "/usr/lib/wsl/lib/nvidia-smi")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
Answer = TypeVar("Answer")
PATIENCE = 20  # seconds; the first answer after a start of the machine takes some


@dataclass(frozen=True)
class Card:
    """An NVIDIA card as its driver describes it."""

    name: str
    driver: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Installed:
    """An NVIDIA card by its number, as nvidia-smi counts, and its UUID; its memory in bytes."""

    number: str
    uuid: str
    memory: float


@dataclass(frozen=True)
class Usage:
    """Usage of an NVIDIA card: the share of it that is busy, 0 to 1, and its memory in bytes."""

    number: str
    name: str
    busy: float
    used: float
    total: float


@cache
def advice() -> str:
    """Say why a card of this machine is not used, and what to do; "" if there is none, or nothing is wrong."""
    program = _program()
    if program is None:
        if not DRIVER_FILE.exists():
            return ""
        return _("There is an NVIDIA driver, but not its program nvidia-smi. Install the driver again.")
    try:
        cards = query(program)
    except (OSError, subprocess.SubprocessError, ValueError):
        return _("The driver of the NVIDIA card does not answer. Restart the machine, or install the driver again.")
    return explain(cards[0], built_for()) if cards else ""


def detected() -> list[Card]:
    """Return the cards of this machine; [] if there is none, or its driver does not answer."""
    program = _program()
    try:
        return query(program) if program else []
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _program() -> str | None:
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def query(program: str) -> list[Card]:
    """Return the cards that the driver's program lists.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be run, or it failed.
        ValueError: it answered something else.
    """
    cards = []
    for driver, capability, name in _ask(program, "driver_version,compute_cap,name"):
        major, minor = capability.split(".")
        cards.append(Card(name, driver, (int(major), int(minor))))
    return cards


@cache
def installed() -> tuple[Installed, ...]:
    """Return the cards of this machine; () if nothing tells."""

    def read(values: list[str]) -> Installed:
        number, uuid, memory = values
        return Installed(number, uuid, float(memory) * 2**20)

    return tuple(_read_each("index,uuid,memory.total", read))


def usage() -> list[Usage]:
    """Return what each card does; [] if nothing tells."""

    def read(values: list[str]) -> Usage:
        number, busy, used, total, name = values
        return Usage(number, name, float(busy) / 100, float(used) * 2**20, float(total) * 2**20)

    return _read_each("index,utilization.gpu,memory.used,memory.total,name", read)


def _read_each(fields: str, read: Callable[[list[str]], Answer]) -> list[Answer]:
    """Return what a function makes of the values of some fields, for each card; [] if nothing tells."""
    program = _program()
    if program is None:
        return []
    try:
        return [read(values) for values in _ask(program, fields)]
    except (OSError, subprocess.SubprocessError, ValueError):  # "[N/A]" where a card does not tell
        return []


def _ask(program: str, fields: str) -> Iterator[list[str]]:
    """Yield the values of some fields for each card; the last field may contain commas.

    Raises:
        OSError, subprocess.SubprocessError: the program cannot be run, or it failed.
        ValueError: it answered something else.
    """
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    with processes.start(command, stdout=processes.PIPE, stderr=processes.NOWHERE) as process:
        try:
            answer, _errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    for line in answer.splitlines():
        yield [part.strip() for part in line.split(",", fields.count(","))]


def make_devices() -> None:
    """Have the driver's program make the files of its devices, which are not all there after a start of the machine.

    The process that computes asks for that itself, unless it is confined.
    """
    program = shutil.which("nvidia-modprobe")
    if program and DRIVER_FILE.exists():
        with suppress(OSError, subprocess.SubprocessError):
            processes.start([program, "-c", "0", "-u"], stderr=processes.NOWHERE).wait(PATIENCE)


@cache
def built_for(version_file: Path | None = None) -> tuple[int, int] | None:
    """Return the version of CUDA that the installed torch was built for; None for a build for CPUs, or without torch.

    Args:
        version_file: `version.py` of torch; by default that of the installed one.
    """
    if version_file is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        version_file = Path(spec.origin).with_name("version.py")
    match = re.search(r"^cuda\b.*?=\s*'(\d+)\.(\d+)'", version_file.read_text(encoding="utf-8"), re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def best_build(card: Card) -> str:
    """Return the build of torch for a card and its driver: a folder of PyTorch's package index."""
    if card.capability < TURING:
        return OLD_BUILD
    if card.capability < BLACKWELL and _driver(card) < OLDEST_DRIVERS[13]:
        return OLD_BUILD
    return BUILD


def _driver(card: Card) -> int:
    return int(card.driver.split(".")[0])


def _has_code_for(cuda: tuple[int, int], card: Card) -> bool:
    """Return True if torch, built for a version of CUDA, was also compiled for a card."""
    if card.capability < TURING:
        return cuda < (12, 8)
    return card.capability < BLACKWELL or cuda >= (12, 8)


def explain(card: Card, cuda: tuple[int, int] | None) -> str:
    """Say why torch, built for a version of CUDA, cannot use a card, and what to do; "" if it can."""
    install = f'"{sys.executable}" -m pip install --force-reinstall torch --index-url {INDEX}{best_build(card)}'
    if cuda is None:
        return _(
            "{card} is not used: the installed torch is for CPUs only. Install the one for NVIDIA cards: {command}",
            card=card.name,
            command=install,
        )
    needed = OLDEST_DRIVERS.get(cuda[0], 0)
    if _driver(card) < needed:
        return _(
            "{card} is not used: its driver {driver} is too old for CUDA {cuda}, which needs at least {needed}. "
            "Install a newer driver from nvidia.com/drivers.",
            card=card.name,
            driver=card.driver,
            cuda=f"{cuda[0]}.{cuda[1]}",
            needed=needed,
        )
    if not _has_code_for(cuda, card):
        return _(
            "{card} is not used: the installed torch has no code for it. Install the one that has: {command}",
            card=card.name,
            command=install,
        )
    return ""
