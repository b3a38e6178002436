"""Several processes on one run, each with a device of its own: who leads, and how what they compute becomes one.

All of them do the same steps on their part of each batch and add up their gradients, so that the adapter is that of
one process. One leads: it alone keeps the run's files and is asked to stop; the others do as it decided.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from fractions import Fraction
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from trainer import fault_injection, runs
from trainer.base_models import detect
from trainer.config import TrainConfig, check
from trainer.config.training import TrainingConfig
from trainer.errors import UserError
from trainer.families import loading
from trainer.runs import COMMANDS, Command, Run, events
from trainer.training import malloc
from trainer.training.checkpoint import Progress

# The others wait while the leader waits for the device, and each for who encodes the longest; but not in a step.
PATIENCE = timedelta(days=7)
ANSWERED_WITHIN = timedelta(minutes=30)
PIECE = 2**26  # bytes that are handed on at once
WATCHED_EVERY = 1.0  # seconds
NOTICED_WITHIN = 15.0  # seconds, by a leader that computes with the process that is gone
BEGUN_BY_US = "LIMNER_PROCESSES"  # in the environment of processes that no launcher began
JOINED_WITHIN = timedelta(minutes=2)  # by the processes that a leader began, once all of them have imported all
PICTURES_EACH = 4
MEMORY_EACH = 2 * 2**30  # bytes


_groups: dict[str, Any] = {}  # those of one process, by how long its members wait for each other


class NotJoinedError(UserError):
    """The other processes of a run could not be started, or ended before they had joined."""

    def __init__(self) -> None:
        error = gone()
        super().__init__(error.message, error.remedy)


def wanted(config: TrainConfig) -> int:
    """Return the number of processes that a run starts with.

    Left open, a run that goes on has as many as before, and a new one has one; but a step of a small base keeps one
    core busy and no more, so on a processor its run takes as many as there are cores and memory for, each with at least
    four pictures of a batch.
    """
    training, base = config.training, config.model.base
    if begun_with := training.devices or config.record.devices:
        return begun_with
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if gpu or detect.is_hub_name(base) or not detect.is_small(loading.locate(config.model)[0]):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, training.batch_size // PICTURES_EACH, psutil.virtual_memory().available // MEMORY_EACH))


@contextmanager
def followers(run: Run, devices: int, follow: Callable[[Run], object]) -> Iterator[None]:
    """Start the other processes of a run on this machine, with this one as their leader; end them afterwards.

    Nothing is started where a launcher did it (`accelerate launch`, `torchrun`). What the others do is `follow`.

    Raises:
        UserError: there are fewer GPUs than devices.
    """
    if devices == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    if 0 < torch.cuda.device_count() < devices:
        raise UserError(
            "The run asks for {devices} devices, but there are {gpus} GPUs.",
            "Set training.devices to that number or less.",
            devices=devices,
            gpus=torch.cuda.device_count(),
        )
    link = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(devices)}
    link |= {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(devices), BEGUN_BY_US: "1"}
    os.environ |= link
    started: list[Any] = []
    over = threading.Event()
    try:
        _start(started, devices, run.folder, follow)
        threading.Thread(target=_watch, args=(run, started, over), daemon=True).start()
        yield
    finally:
        over.set()
        for process in started:
            process.kill()
            process.join()
        for name in link:
            os.environ.pop(name, None)


def _start(started: list[Any], devices: int, folder: Path, follow: Callable[[Run], object]) -> None:
    """Start the other processes, and wait until each of them has imported what it needs.

    Raises:
        NotJoinedError: one of them cannot be started, or has ended before that.
    """
    # A fork has all that is imported here at once; a GPU does not go along with it, and macOS has no safe one.
    forks = sys.platform == "linux" and not torch.cuda.is_available() and not fault_injection.spawns()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    began: list[Any] = []
    for rank in range(1, devices):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_begin, args=(rank, folder, follow, there))
        try:
            process.start()
        except OSError as error:
            raise NotJoinedError from error
        finally:
            there.close()
        started.append(process)
        began.append(here)
    for here, process in zip(began, started, strict=True):
        connection.wait([here, process.sentinel])
        try:
            here.recv_bytes()
        except EOFError:
            raise NotJoinedError from None
        finally:
            here.close()


def _begin(rank: int, folder: Path, follow: Callable[[Run], object], began: Any) -> None:  # noqa: ANN401 - untyped
    fault_injection.follower(rank)
    began.send_bytes(b"began")
    began.close()
    malloc.tune()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        follow(Run(folder, leads=False))
    except UserError:  # the leader meets the same, and tells it
        threading.Event().wait()


def _watch(run: Run, started: list[Any], over: threading.Event) -> None:
    """End this process if one of the others broke off and it does not notice: it may wait for what never comes.

    Where nobody asked for them it is left to notice that they do not join, within `JOINED_WITHIN`, and goes on alone.
    """
    needed = run.config().training.devices > 0
    while (alive := [one for one in started if one.exitcode is None]) and not over.is_set():
        connection.wait([one.sentinel for one in alive])
        matters = needed or torch.distributed.is_initialized()
        if any(one.exitcode for one in alive) and matters and not over.wait(NOTICED_WITHIN):
            error = gone()
            run.report(events.Failed(message=error.message, remedy=error.remedy, traceback=""))
            os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def follow() -> None:
    """Make this process one that ends with its parent, and leaves it to the leader to hear what it is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, whose number it may keep: Windows gives orphans no other parent."""
    begun_by = multiprocessing.parent_process()  # none if a launcher began it
    if begun_by is None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(parent)
            while process.is_running() and os.getppid() == parent:
                time.sleep(WATCHED_EVERY)
    else:
        # The pipe of a fork is open in those that were forked after it, too, hence the look at the number.
        forked = sys.platform != "win32"
        while not connection.wait([begun_by.sentinel], WATCHED_EVERY):
            if forked and os.getppid() != begun_by.pid:
                break
    os._exit(1)


def gone() -> UserError:
    """Build the error for another process that is gone."""
    return UserError(
        "Another process of this run has ended, so that it cannot go on.",
        "The log says why; the run can be resumed from its last checkpoint.",
    )


@contextmanager
def _together(within: timedelta) -> Iterator[None]:
    """Inside the `with`, what goes wrong is that another process is gone, or has not answered for so long.

    Raises:
        UserError: it is.
    """
    begun = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        waited = time.monotonic() - begun
        if waited < 0.9 * within.total_seconds():
            raise gone() from error
        raise UserError(
            "Another process of this run did not answer for {minutes:.0f} minutes, so that it cannot go on.",
            "Check that its machine and the network are up; the run can be resumed from its last checkpoint.",
            minutes=max(1, waited / 60),
        ) from error


def _patience() -> timedelta:
    return timedelta(seconds=fault_injection.patience(ANSWERED_WITHIN.total_seconds()))


def join(precision: str) -> Accelerator:
    """This process's device, and its link to the others if there are any; gloo where there is no GPU.

    Raises:
        NotJoinedError: the others are not there; a process that is the only one from then on may join again.
    """
    mixed = "no" if precision == "fp32" else precision
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Accelerator(mixed_precision=mixed)
    on_processor, threads = not torch.cuda.is_available(), torch.get_num_threads()
    shares = on_processor and "OMP_NUM_THREADS" not in os.environ
    if shares:
        # Left open, each process gets a thread for each core of the machine, and a warning of that.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, threads // here))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    fault_injection.joining(int(os.environ["RANK"]))
    within = PATIENCE
    if BEGUN_BY_US in os.environ:
        within = timedelta(seconds=fault_injection.patience(JOINED_WITHIN.total_seconds()))
    # By default a GPU that waits in vain ends the process without a word.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        accelerator = Accelerator(
            mixed_precision=mixed, cpu=on_processor, kwargs_handlers=[InitProcessGroupKwargs(timeout=within)]
        )
        _groups["patient"] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        _groups["prompt"] = torch.distributed.new_group(timeout=_patience())
    except RuntimeError as error:
        AcceleratorState._reset_state(reset_partial_state=True)
        if shares:
            torch.set_num_threads(threads)
            del os.environ["OMP_NUM_THREADS"]
        raise NotJoinedError from error
    return accelerator


def share(accelerator: Accelerator) -> Fraction:
    """Return where this process begins in the work that is shared between all."""
    return Fraction(accelerator.process_index, accelerator.num_processes)


def wait(accelerator: Accelerator) -> None:
    """Wait until all processes are here."""
    largest(accelerator, 0.0)


def shared(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """The leader's settings, with as many devices on record as there are processes, whoever started them.

    Where the pictures and the base are is each machine's own matter.

    Raises:
        UserError: a batch has not a picture for each.
    """
    devices = accelerator.num_processes
    check(TrainingConfig, config.training.model_dump() | {"devices": devices})
    if devices > 1:
        theirs = check(TrainConfig, json.loads(give(accelerator, config.model_dump_json().encode())))
        places = {
            "dataset": config.dataset,
            "prior": theirs.prior.model_copy(update={"dataset": config.prior.dataset}),
            "model": theirs.model.model_copy(update={"base": config.model.base}),
        }
        config = theirs.model_copy(update=places)
    return config.model_copy(update={"record": config.record.model_copy(update={"devices": devices})})


def agree(accelerator: Accelerator, config: TrainConfig) -> None:
    """Wait for the process that takes the longest to prepare, and make sure that all have prepared the same.

    Raises:
        UserError: they have not.
    """
    if accelerator.num_processes == 1:
        return
    with _together(PATIENCE):
        torch.distributed.all_reduce(torch.zeros(1), group=_groups["patient"])
    own: dict[str, Any] = {"dataset": True, "prior": {"dataset"}, "model": {"base"}, "record": True}
    prepared = config.model_dump_json(exclude=own) + config.record.dataset_sha256 + config.record.base_sha256
    number = float(int.from_bytes(hashlib.sha256(prepared.encode()).digest()[:6], "big"))
    if largest(accelerator, number) != -largest(accelerator, -number):
        raise UserError(
            "The machines of this run do not have the same pictures, captions, base model or precision.",
            "Copy them so that each machine has the same, then start again.",
        )


def give(accelerator: Accelerator, data: bytes) -> bytes:
    """The leader's bytes, in each process."""
    if accelerator.num_processes == 1:
        return data
    size = int(_leaders(accelerator, [len(data)])[0])
    buffer = bytearray(data if accelerator.is_main_process else size)
    for first in range(0, size, PIECE):
        here = torch.frombuffer(buffer, dtype=torch.uint8, offset=first, count=min(PIECE, size - first))
        piece = here.to(accelerator.device)
        with _together(_patience()):
            torch.distributed.broadcast(piece, 0, group=_groups["prompt"])
            here.copy_(piece)
    return bytes(buffer)


def _leaders(accelerator: Accelerator, values: list[int]) -> list[int]:
    """The leader's whole numbers, in each process."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64, device=accelerator.device)
    with _together(_patience()):
        torch.distributed.broadcast(tensor, 0, group=_groups["prompt"])
        return [int(value) for value in tensor.tolist()]


def add_up(accelerator: Accelerator, progress: Progress, loss: Tensor) -> Tensor:
    """Make each gradient the sum over all processes, in one exchange; returns the loss summed likewise."""
    if accelerator.num_processes == 1:
        return loss
    parameters = progress.parameters()
    flat = [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in parameters]
    total = torch.cat([*flat, loss.flatten()])
    with _together(_patience()):
        torch.distributed.all_reduce(total, group=_groups["prompt"])
    *sums, loss = torch.split(total, [*(one.numel() for one in parameters), 1])
    for parameter, summed in zip(parameters, sums, strict=True):
        parameter.grad = summed.view_as(parameter).clone()
    return loss.reshape(())


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest of the processes' values, so that they all go by the same."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    with _together(_patience()):
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=_groups["prompt"])
        return tensor.item()


def asked(accelerator: Accelerator, run: Run, then: events.Event) -> set[Command]:
    """Return the requests since the last step, as the main process read them.

    While the run is paused all wait here, and hear from the leader that it is there; an event `then` ends that.
    """
    paused = False
    while True:
        holds = run.holds
        held, *flags = _leaders(accelerator, [holds, *(not holds and run.asked(command) for command in COMMANDS)])
        if not held:
            break
        paused = True
        time.sleep(runs.PATIENCE)
    if paused:
        run.report(then)
    return {command for command, flag in zip(COMMANDS, flags, strict=True) if flag}
