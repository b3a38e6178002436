"""A worker that has imported everything and waits for a run, so that Start does not wait for these imports.

It ends when nothing is started for a while, and with the page, whose end it reads as that of its input. Once it has a
run it is a worker like any other, which outlives the page.
"""

import subprocess
import sys
import threading
import time
from typing import IO

from trainer import processes, runs
from trainer.machine import pace
from trainer.runs import Run, control

IDLE = 600.0  # seconds after which it ends, to free its memory
MEASURED_WITHIN = 120.0  # seconds; on a slow disk the imports before it take the most
COMMAND = (sys.executable, "-m", "trainer", "work")

_life = threading.Lock()
_waiting: subprocess.Popen[str] | None = None
_timer: threading.Timer | None = None


def prepare() -> None:
    """Start a worker that waits for a run, unless one waits already. It is not waited for."""
    global _waiting, _timer
    with _life:
        if _timer:
            _timer.cancel()
        if _waiting is None or _waiting.poll() is not None:
            _waiting = processes.start(COMMAND, stdin=processes.PIPE, stderr=processes.NOWHERE, outlives=True)
        _timer = threading.Timer(IDLE, close)
        _timer.daemon = True
        _timer.start()


def is_measuring() -> bool:
    """Return True if a worker is about to say how fast this machine is, which nobody has measured yet."""
    process = _waiting
    return process is not None and process.poll() is None and not pace.is_measured()


def wait_until_measured() -> None:
    """Wait as long as `is_measuring`, within a limit."""
    end = time.monotonic() + MEASURED_WITHIN
    while is_measuring() and time.monotonic() < end:
        time.sleep(0.1)


def start(run: Run) -> None:
    """Start or resume a run in the worker that waits, or in a new one.

    Raises:
        UserError: it is already running.
    """
    runs.start(run, _hand_over)


def close() -> None:
    """End the worker that waits, if there is one."""
    if process := _take():
        _pipe(process).close()
        process.kill()
        process.wait()


def _hand_over(run: Run) -> None:
    process = _take()
    if process is None or not _is_told(process, run):
        control.spawn(run)


def _is_told(process: subprocess.Popen[str], run: Run) -> bool:
    """Tell a worker that waits of its run; False if it has ended, as when a system is short of memory."""
    control.note_process(run, process.pid)
    try:
        with _pipe(process) as pipe:
            pipe.write(f"{run.folder.resolve()}\n")
        return True
    except OSError:
        return False
    finally:
        threading.Thread(target=process.wait, daemon=True).start()  # so that it does not become a zombie


def _take() -> subprocess.Popen[str] | None:
    """Return the worker that waits, for nobody else to have it."""
    global _waiting
    with _life:
        process, _waiting = _waiting, None
        if _timer:
            _timer.cancel()
    return process


def _pipe(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin  # a pipe
    return process.stdin
