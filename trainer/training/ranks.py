"""Start the other processes of a run on this machine, watch them, and end them with the run.

They know each other by rank: 0 is the main process, which the page or a person started. What they do together is in
`distributed`.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer import devices, processes
from trainer.base_models import detect
from trainer.config import TrainConfig
from trainer.devices import Untyped
from trainer.errors import UserError
from trainer.runs import Run, events

WATCHED_EVERY = 1.0  # seconds
NOTICED_WITHIN = 15.0  # seconds, by a main process that computes with the process that is gone
STARTED_HERE = "LIMNER_PROCESSES"  # in the environment of processes that were not started by a launcher
JOINED_WITHIN = timedelta(minutes=2)  # by the processes that were started here, once all have imported everything
IMAGES_EACH = 4
MEMORY_EACH = 2 * 2**30  # bytes


class NotJoinedError(UserError):
    """The other processes of a run could not be started, or ended before they joined."""

    def __init__(self) -> None:
        error = gone()
        super().__init__(error.message, error.remedy)


def wanted(config: TrainConfig) -> int:
    """Return the number of processes that a run starts with.

    If the settings leave it open, a resumed run has as many as before, and a new one has one; but a step of a small
    base keeps only one core busy, so that on a CPU its run takes as many as there are cores and memory for, each with
    at least four images of a batch.
    """
    training, base = config.training, config.model.base
    if processes := config.planned_devices:
        return processes
    if (
        devices.count()
        or detect.is_hub_name(base)
        or not detect.is_small(detect.locate(base, config.model.revision)[0])
    ):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, training.batch_size // IMAGES_EACH, psutil.virtual_memory().available // MEMORY_EACH))


def can_connect() -> bool:
    """Return True if gloo starts here, which connects the processes of a run; some Windows installations lack it."""
    if sys.platform != "linux":  # there it does, and its threads would not live on in a fork
        distributed: Any = torch.distributed
        if not distributed.is_available() or not distributed.is_gloo_available():
            return False
        try:
            distributed.ProcessGroupGloo(distributed.HashStore(), 0, 1, JOINED_WITHIN)
        except RuntimeError:
            traceback.print_exc()
            return False
    return True


@contextmanager
def followers(run: Run, processes: int, follow: Callable[[Run], object]) -> Iterator[None]:
    """Start the other ranks of a run on this machine, with this one as the main process; end them afterwards.

    A launcher (`accelerate launch`, `torchrun`) has started them already. Each of them runs `follow`.

    Raises:
        UserError: there are fewer GPUs than devices.
    """
    if processes == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    if 0 < devices.count() < processes:
        raise UserError(
            "The run asks for {devices} devices, but there are {gpus} GPUs.",
            "Set training.devices to that number or less.",
            devices=processes,
            gpus=devices.count(),
        )
    link = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    link |= {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(processes), STARTED_HERE: "1"}
    if sys.platform == "win32":
        link["USE_LIBUV"] = "0"  # torch's builds for Windows lack it, and some want it all the same
    os.environ |= link
    ranks: list[Any] = []
    done = threading.Event()
    try:
        _start(ranks, processes, run.folder, follow)
        threading.Thread(target=_watch, args=(run, ranks, done), daemon=True).start()
        yield
    finally:
        done.set()
        for rank in ranks:
            rank.kill()
            rank.join()
        for name in link:
            os.environ.pop(name, None)


def _start(ranks: list[Any], processes: int, folder: Path, follow: Callable[[Run], object]) -> None:
    """Start the other ranks, and wait until each of them has imported what it needs.

    Raises:
        NotJoinedError: one of them cannot be started, or ended before that.
    """
    # A fork has all imports at once; but CUDA does not survive one, and on macOS it is not safe.
    forks = sys.platform == "linux" and not devices.count()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    receivers: list[Any] = []
    for rank in range(1, processes):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_rank, args=(rank, folder, follow, sender))
        try:
            process.start()
        except OSError as error:
            raise NotJoinedError from error
        finally:
            sender.close()
        ranks.append(process)
        receivers.append(receiver)
    for receiver, process in zip(receivers, ranks, strict=True):
        connection.wait([receiver, process.sentinel])
        try:
            receiver.recv_bytes()
        except EOFError:
            raise NotJoinedError from None
        finally:
            receiver.close()


def _run_rank(rank: int, folder: Path, follow: Callable[[Run], object], sender: Untyped) -> None:
    sender.send_bytes(b"started")
    sender.close()
    processes.tune_malloc()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        follow(Run(folder, is_main=False))
    except UserError:  # the main process has the same error, and reports it
        threading.Event().wait()


def _watch(run: Run, processes: list[Any], done: threading.Event) -> None:
    """End this process if another one was aborted and it does not notice: it may wait forever.

    If the settings do not ask for others, it notices within `JOINED_WITHIN` that they do not join, and goes on alone.
    """
    required = run.config().training.wanted_devices > 0
    while not done.is_set():
        alive = [process for process in processes if process.exitcode is None]
        was_aborted = any(process.exitcode for process in processes)  # perhaps before this thread had begun
        matters = required or torch.distributed.is_initialized()
        if was_aborted and matters and not done.wait(NOTICED_WITHIN):
            error = gone()
            run.report(events.Failed(message=error.message, remedy=error.remedy, template=error.template, traceback=""))
            os._exit(1)
        if not alive:
            return
        connection.wait([process.sentinel for process in alive])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def follow() -> None:
    """Make this process end with its parent, and leave requests and signals to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, whose id it may keep: Windows gives orphans no other parent."""
    parent_process = multiprocessing.parent_process()  # none if a launcher started it
    if parent_process is None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(parent)
            while process.is_running() and os.getppid() == parent:
                time.sleep(WATCHED_EVERY)
    else:
        # The pipe of a fork is also open in those that were forked after it, hence the look at the id.
        forked = sys.platform != "win32"
        while not connection.wait([parent_process.sentinel], WATCHED_EVERY):
            if forked and os.getppid() != parent_process.pid:
                break
    os._exit(1)


def gone() -> UserError:
    """Build the error for another process that is gone."""
    return UserError(
        "Another process of this run has ended, so that the run cannot go on.",
        "The log says why; the run can be resumed from its last checkpoint.",
    )
