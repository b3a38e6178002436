"""Control runs: start, pause and stop them, and kill a worker that does not respond."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from trainer import processes, storage
from trainer.errors import UserError
from trainer.runs.run import ACTIVE, PAUSE, PROCESS, Command, Run, all_runs
from trainer.runs.view import is_locked, look, starter

Executor = Callable[[Run], None]
# Files in the requests of a run: the step from which it went on by itself; and that the system told it to end.
RESUMED, TERMINATED = "resumed", "terminated"


def spawn(run: Run) -> None:
    """Start a worker for this run, detached: it outlives this process, its page and its terminal."""
    with run.worker_log.open("ab") as log:
        command = [sys.executable, "-m", "trainer", "work", str(run.folder.resolve())]
        process = processes.start(command, stdout=log, stderr=log, outlives=True)
    note_process(run, process.pid)
    threading.Thread(target=process.wait, daemon=True).start()  # so that it does not become a zombie


def note_process(run: Run, pid: int) -> None:
    """Note the process that is started for a run, which is starting for as long as this lives: see `view.starter`.

    Without the note, as on a full disk, a run counts as starting for `view.START_GRACE`.
    """
    with suppress(psutil.NoSuchProcess, OSError):
        note = {"pid": pid, "created": psutil.Process(pid).create_time()}
        storage.write(run.folder / "ask" / PROCESS, json.dumps(note))


def start(run: Run, executor: Executor = spawn) -> None:
    """Start or resume a run; the worker waits until the cards that it needs are free.

    Raises:
        UserError: it is already running.
    """
    if look(run).status in ACTIVE:
        raise UserError("This run is already running.", "Watch it, or stop it first.")
    requests = run.folder / "ask"
    requests.mkdir(exist_ok=True)
    for old in requests.iterdir():
        storage.remove(old)
    (requests / "start").touch()
    executor(run)


def resume_cut(executor: Executor = spawn) -> Iterator[Run]:
    """Resume runs that a power cut or a shutdown ended; not twice from one step, and none that a user ended."""
    for run in all_runs():
        ask, notes = run.folder / "ask", {"interrupted": PROCESS, "stopped": TERMINATED}
        noted = {end for end, note in notes.items() if (ask / note).is_file()}
        if not noted or (view := look(run)).status not in noted:  # the logs of most runs are not read for this
            continue
        mark, step = ask / RESUMED, str(view.state.step)
        if not mark.is_file() or mark.read_text(encoding="utf-8") != step:
            with suppress(UserError, OSError):  # such as a full disk, of which the page speaks
                start(run, executor)
                storage.write(mark, step)
                yield run


def request(run: Run, command: Command) -> None:
    """Request something from the worker, which checks for requests after each step."""
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / command).touch()


def pause(run: Run, *, go_on: bool = False) -> None:
    """Hold a run after its current step, with all that it has in memory, or let it go on."""
    path = run.folder / "ask" / PAUSE
    if go_on:
        storage.remove(path)
    else:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def terminate(run: Run) -> None:
    """Ask a run to stop because the system shuts down; see `resume_cut`."""
    request(run, "stop")
    (run.folder / "ask" / TERMINATED).touch()


def stop(run: Run) -> None:
    """Ask a run to stop after the current step; kill it if it did not respond to an earlier request."""
    if look(run).is_unresponsive(time.time()):
        kill(run)
    elif not (run.folder / "ask" / "stop").exists():  # the time to respond counts from the first request
        request(run, "stop")


def kill(run: Run) -> None:
    """Kill a worker that does not respond, and its child processes; the run can be resumed afterwards.

    The process id in the log is trusted only while the lock of the worker is held; one that starts is noted.
    """
    worker, pid = starter(run), look(run).state.pid
    with suppress(psutil.NoSuchProcess):
        if pid and is_locked(run.lock):
            worker = psutil.Process(pid)
        if worker is None:
            return
        for process in (worker, *worker.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    for note in ("stop", PROCESS):
        storage.remove(run.folder / "ask" / note)


def stop_on_interrupt(run: Run) -> None:
    """Ask a run to stop at the first Ctrl+C and end this process at the second, whatever it is doing.

    A thread reads the signals, as a Python handler has to wait until the main thread returns from native code.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_read_signals, args=(run, receiver, sender), daemon=True).start()


def _read_signals(run: Run, receiver: socket.socket, _sender: socket.socket) -> None:
    """Read signal numbers from one end of the pair; the reference to the other keeps it open."""
    interrupted = False
    while number := receiver.recv(1):
        if number[0] != signal.SIGINT:
            continue
        if interrupted:
            os._exit(130)
        interrupted = True
        request(run, "stop")
        sys.stderr.write("\nStopping after this step; press Ctrl+C again to end it at once.\n")
        sys.stderr.flush()
