"""Check whether micro can draw the images of a project, in a process of its own: the page itself loads no model."""

import atexit
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainer import processes
from trainer.base_models import MICRO
from trainer.data import reach
from ui.state import page_memory

COMMAND = (sys.executable, "-m", "trainer", "gauge")
PATIENCE = 180.0  # seconds that the process may take
MOMENT = 1.0  # seconds that a request waits for it, so that no request keeps the server from ending
_TURN = threading.Lock()


@dataclass(frozen=True)
class _Check:
    """A process that checks the images of a folder."""

    folder: Path
    process: subprocess.Popen[str]
    begun: float = field(default_factory=time.monotonic)


_checks: list[_Check] = []  # one at a time


def is_due(folder: Path) -> bool:
    """Return True if a project uses micro and has images that have not been checked yet."""
    return (page_memory.answer(folder.name, "base") or MICRO) == MICRO and bool(reach.missing(folder))


def look(folder: Path) -> bool:
    """Check the images of a project with micro, and wait a moment for the result.

    Images that cannot be checked are not tried again.

    Returns:
        True if the check is still running; call again then.
    """
    if not is_due(folder):
        return False
    with _TURN:
        if not _checks:
            try:
                _checks.append(_Check(folder, _start(folder)))
            except OSError:
                _note_unseen(folder)
                return False
        current = _checks[0]
        try:
            current.process.wait(MOMENT)
        except subprocess.TimeoutExpired:
            if time.monotonic() - current.begun < PATIENCE:
                return True
            current.process.kill()
            current.process.wait()
        _checks.clear()
        _note_unseen(current.folder)
    return is_due(folder)


def _start(folder: Path) -> subprocess.Popen[str]:
    process = processes.start([*COMMAND, str(folder.resolve())], stderr=processes.NOWHERE)
    atexit.register(process.kill)
    return process


def _note_unseen(folder: Path) -> None:
    """Record that there is no result for the images that are left, so that they are not checked again."""
    if left := reach.missing(folder):
        reach.keep(folder, dict.fromkeys((path.name for path in left), None))
