"""Train one run with several processes, each with a device of its own.

All of them take the same steps on their part of each batch and add up their gradients, so that the adapter is that of
one process. Only the main process (rank 0) writes the run's files and reads requests; the others do as it decides.
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

from trainer import devices, fault_injection, runs
from trainer.base_models import detect
from trainer.config import TrainConfig, check
from trainer.config.training import TrainingConfig
from trainer.errors import UserError
from trainer.runs import COMMANDS, Command, Run, events
from trainer.training import malloc
from trainer.training.checkpoint import TrainState

# The others wait while the main process waits for the device, and all for the slowest to encode; but not in a step.
PATIENCE = timedelta(days=7)
ANSWERED_WITHIN = timedelta(minutes=30)
CHUNK = 2**26  # bytes that are broadcast at once
WATCHED_EVERY = 1.0  # seconds
NOTICED_WITHIN = 15.0  # seconds, by a main process that computes with the process that is gone
STARTED_HERE = "LIMNER_PROCESSES"  # in the environment of processes that were not started by a launcher
JOINED_WITHIN = timedelta(minutes=2)  # by the processes that were started here, once all have imported everything
IMAGES_EACH = 4
MEMORY_EACH = 2 * 2**30  # bytes

_groups: dict[str, Any] = {}  # process groups, by how long their members wait for each other


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
    if processes := training.devices or config.record.devices:
        return processes
    if (
        devices.count()
        or detect.is_hub_name(base)
        or not detect.is_small(detect.locate(base, config.model.revision)[0])
    ):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, training.batch_size // IMAGES_EACH, psutil.virtual_memory().available // MEMORY_EACH))


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
    forks = sys.platform == "linux" and not devices.count() and not fault_injection.must_spawn()
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


def _run_rank(rank: int, folder: Path, follow: Callable[[Run], object], sender: Any) -> None:  # noqa: ANN401 - untyped
    fault_injection.on_rank_start(rank)
    sender.send_bytes(b"started")
    sender.close()
    malloc.tune()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        follow(Run(folder, is_main=False))
    except UserError:  # the main process has the same error, and reports it
        threading.Event().wait()


def _watch(run: Run, processes: list[Any], done: threading.Event) -> None:
    """End this process if another one was aborted and it does not notice: it may wait forever.

    If the settings do not ask for others, it notices within `JOINED_WITHIN` that they do not join, and goes on alone.
    """
    required = run.config().training.devices > 0
    while (alive := [process for process in processes if process.exitcode is None]) and not done.is_set():
        connection.wait([process.sentinel for process in alive])
        matters = required or torch.distributed.is_initialized()
        if any(process.exitcode for process in alive) and matters and not done.wait(NOTICED_WITHIN):
            error = gone()
            run.report(events.Failed(message=error.message, remedy=error.remedy, traceback=""))
            os._exit(1)


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


@contextmanager
def _together(within: timedelta) -> Iterator[None]:
    """Report an error inside the `with` as another process that is gone, or has not answered for so long.

    Raises:
        UserError: there was one.
    """
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        waited = time.monotonic() - start
        if waited < 0.9 * within.total_seconds():
            raise gone() from error
        raise UserError(
            "Another process of this run did not answer for {minutes:.0f} minutes, so that the run cannot go on.",
            "Check its machine and the network; the run can be resumed from its last checkpoint.",
            minutes=max(1, waited / 60),
        ) from error


def _patience() -> timedelta:
    return timedelta(seconds=fault_injection.timeout(ANSWERED_WITHIN.total_seconds()))


def join(precision: str) -> Accelerator:
    """Return this process's device and its connection to the others, if there are any; gloo where there is no GPU.

    Raises:
        NotJoinedError: the others do not answer; a process that goes on alone may join again.
    """
    mixed = "no" if precision == "fp32" else precision
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Accelerator(mixed_precision=mixed)
    on_cpu, threads = not devices.count(), torch.get_num_threads()
    limits_threads = on_cpu and "OMP_NUM_THREADS" not in os.environ
    if limits_threads:
        # By default each process gets a thread for each core of the machine, and a warning of that.
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, threads // local_processes))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    fault_injection.on_rank_join(int(os.environ["RANK"]))
    within = PATIENCE
    if STARTED_HERE in os.environ:
        within = timedelta(seconds=fault_injection.timeout(JOINED_WITHIN.total_seconds()))
    # By default a GPU that waits in vain ends the process without a message.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        accelerator = Accelerator(
            mixed_precision=mixed, cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=within)]
        )
        _groups["patient"] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        _groups["prompt"] = torch.distributed.new_group(timeout=_patience())
    except RuntimeError as error:
        AcceleratorState._reset_state(reset_partial_state=True)
        if limits_threads:
            torch.set_num_threads(threads)
            del os.environ["OMP_NUM_THREADS"]
        raise NotJoinedError from error
    return accelerator


def start_of(accelerator: Accelerator) -> Fraction:
    """Return the position at which this process begins in work that all share."""
    return Fraction(accelerator.process_index, accelerator.num_processes)


def wait(accelerator: Accelerator) -> None:
    """Wait for all processes."""
    largest(accelerator, 0.0)


def share_config(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """Return the main process's settings, and record the number of processes, whoever started them.

    The paths of dataset and base model remain each machine's own.

    Raises:
        UserError: a batch has fewer images than there are processes.
    """
    processes = accelerator.num_processes
    check(TrainingConfig, config.training.model_dump() | {"devices": processes})
    if processes > 1:
        main = check(TrainConfig, json.loads(broadcast(accelerator, config.model_dump_json().encode())))
        own_paths = {
            "dataset": config.dataset,
            "regularization": main.regularization.model_copy(update={"dataset": config.regularization.dataset}),
            "model": main.model.model_copy(update={"base": config.model.base}),
        }
        config = main.model_copy(update=own_paths)
    return config.model_copy(update={"record": config.record.model_copy(update={"devices": processes})})


def check_same(accelerator: Accelerator, config: TrainConfig) -> None:
    """Wait until the slowest process is prepared, and check that all have the same data, base and precision.

    Raises:
        UserError: they have not.
    """
    if accelerator.num_processes == 1:
        return
    with _together(PATIENCE):
        torch.distributed.all_reduce(torch.zeros(1), group=_groups["patient"])
    own: dict[str, Any] = {"dataset": True, "regularization": {"dataset"}, "model": {"base"}, "record": True}
    inputs = config.model_dump_json(exclude=own) + config.record.dataset_sha256 + config.record.base_sha256
    number = float(int.from_bytes(hashlib.sha256(inputs.encode()).digest()[:6], "big"))
    if largest(accelerator, number) != -largest(accelerator, -number):
        raise UserError(
            "The machines of this run do not have the same images, captions, base model or precision.",
            "Copy them so that all machines have the same, then start again.",
        )


def broadcast(accelerator: Accelerator, data: bytes) -> bytes:
    """Return the main process's bytes in each process."""
    if accelerator.num_processes == 1:
        return data
    size = _broadcast_integers(accelerator, [len(data)])[0]
    buffer = bytearray(data if accelerator.is_main_process else size)
    for first in range(0, size, CHUNK):
        view = torch.frombuffer(buffer, dtype=torch.uint8, offset=first, count=min(CHUNK, size - first))
        chunk = view.to(accelerator.device)
        with _together(_patience()):
            torch.distributed.broadcast(chunk, 0, group=_groups["prompt"])
            view.copy_(chunk)
    return bytes(buffer)


def _broadcast_integers(accelerator: Accelerator, values: list[int]) -> list[int]:
    """Return the main process's integers in each process."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64, device=accelerator.device)
    with _together(_patience()):
        torch.distributed.broadcast(tensor, 0, group=_groups["prompt"])
        return [int(value) for value in tensor.tolist()]


def reduce_gradients(accelerator: Accelerator, state: TrainState, loss: Tensor) -> Tensor:
    """Sum each gradient over all processes, in one exchange; return the sum of their losses."""
    if accelerator.num_processes == 1:
        return loss
    parameters = state.parameters()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
    total = torch.cat([*(gradient.flatten() for gradient in gradients), loss.flatten()])
    with _together(_patience()):
        torch.distributed.all_reduce(total, group=_groups["prompt"])
    *sums, loss = torch.split(total, [*(parameter.numel() for parameter in parameters), 1])
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient.view_as(parameter).clone()
    return loss.reshape(())


def largest(accelerator: Accelerator, value: float) -> float:
    """Return the largest of the processes' values in each process."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    with _together(_patience()):
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=_groups["prompt"])
        return tensor.item()


def requests(accelerator: Accelerator, run: Run, resumed: events.Event) -> set[Command]:
    """Return the requests since the last step, as the main process read them.

    While the run is paused all wait here, in contact with the main process; the event `resumed` is reported afterwards.
    """
    waited = False
    while True:
        pause = run.is_held
        values: list[int] = [pause, *(not pause and run.take_request(command) for command in COMMANDS)]
        paused, *flags = _broadcast_integers(accelerator, values)
        if not paused:
            break
        waited = True
        time.sleep(runs.PAUSE_POLL)
    if waited:
        run.report(resumed)
    return {command for command, flag in zip(COMMANDS, flags, strict=True) if flag}
