"""Has micro look at the pictures of a project, in a process of its own: the page itself never loads a model."""

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from trainer import config as configs
from trainer import reach
from ui import memory

COMMAND = (sys.executable, "-m", "trainer", "gauge")
CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 180.0  # seconds
_TURN = threading.Lock()  # one process at a time


def is_due(folder: Path) -> bool:
    """Whether a project is to be trained on micro, which has not seen its pictures yet."""
    return (memory.answer(folder.name, "base") or configs.MICRO) == configs.MICRO and bool(reach.missing(folder))


def look(folder: Path) -> None:
    """Let micro look at the pictures, and wait for it; what it could not be asked about is not asked again."""
    with _TURN:
        if not is_due(folder):
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(  # an argument list, no shell
                [*COMMAND, str(folder.resolve())],
                cwd=CHECKOUT,
                timeout=PATIENCE,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        if left := reach.missing(folder):
            reach.keep(folder, dict.fromkeys((path.name for path in left), None))
