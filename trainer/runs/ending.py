"""End a run before its time: ask it to stop first, and kill its processes if it does not respond."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import psutil

from trainer import runs
from trainer.runs import Run


def stop(run: Run) -> None:
    """Ask a run to end after its present step; one that was asked before and did not hear it is ended at once."""
    if runs.look(run).is_deaf(time.time()):
        kill(run)
    elif not (run.folder / "ask" / "stop").exists():  # when it was asked first is when its time began
        runs.ask(run, "stop")


def kill(run: Run) -> None:
    """End a worker that does not answer, and the processes it began; the run can be resumed then.

    The number of its process is trusted while its lock is held.
    """
    number = runs.look(run).state.pid
    if not number or not runs.is_locked(run.lock):
        return
    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(number)
        for process in (worker, *worker.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    (run.folder / "ask" / "stop").unlink(missing_ok=True)


def heed_interrupts(run: Run) -> None:
    """Ask a run to stop at the first Ctrl+C and end this process at the second, whatever it is doing.

    A thread hears of them: a handler in Python has to wait for what the main thread is in.
    """
    here, there = socket.socketpair()
    there.setblocking(False)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_heed, args=(run, here, there), daemon=True).start()


def _heed(run: Run, here: socket.socket, _: socket.socket) -> None:
    """Read the numbers of the signals from one end; the other one is open as long as there is somebody to read."""
    interrupted = False
    while number := here.recv(1):
        if number[0] != signal.SIGINT:
            continue
        if interrupted:
            os._exit(130)
        interrupted = True
        runs.ask(run, "stop")
        print("\nStopping after this step; press Ctrl+C again to end it at once.", file=sys.stderr, flush=True)  # noqa: T201
