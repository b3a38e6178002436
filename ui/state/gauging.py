"""Has micro look at the pictures of a project, in a process of its own: the page itself never loads a model."""

import atexit
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainer import paths
from trainer.base_models import MICRO
from trainer.data import reach
from ui.state import page_memory

COMMAND = (sys.executable, "-m", "trainer", "gauge")
PATIENCE = 180.0  # seconds that micro may take
MOMENT = 1.0  # seconds that a request waits for it, so that no request keeps a server from ending
_TURN = threading.Lock()


@dataclass(frozen=True)
class _Look:
    """A process that looks at the pictures of a folder."""

    folder: Path
    process: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.monotonic)


_looks: list[_Look] = []  # one at a time


def is_due(folder: Path) -> bool:
    """Tell whether a project is to be trained on micro and has images that micro has not seen yet."""
    return (page_memory.answer(folder.name, "base") or MICRO) == MICRO and bool(reach.missing(folder))


def look(folder: Path) -> bool:
    """Have micro look at the pictures of a project, and wait a moment for it.

    What it could not be asked about is not asked again.

    Returns:
        Whether it is still looking; then ask again.
    """
    if not is_due(folder):
        return False
    with _TURN:
        if not _looks:
            try:
                _looks.append(_Look(folder, _start(folder)))
            except OSError:
                _note_unseen(folder)
                return False
        current = _looks[0]
        try:
            current.process.wait(MOMENT)
        except subprocess.TimeoutExpired:
            if time.monotonic() - current.begun < PATIENCE:
                return True
            current.process.kill()
            current.process.wait()
        _looks.clear()
        _note_unseen(current.folder)
    return is_due(folder)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(  # an argument list, no shell
        [*COMMAND, str(folder.resolve())], cwd=paths.CODE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _note_unseen(folder: Path) -> None:
    """Note that there is no figure for what micro did not tell, so that it is not asked again."""
    if left := reach.missing(folder):
        reach.keep(folder, dict.fromkeys((path.name for path in left), None))
