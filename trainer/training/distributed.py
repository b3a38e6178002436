"""Train one run with several processes, each with a device of its own.

All of them take the same steps on their part of each batch and add up their gradients, so that the adapter is that of
one process. Only the main process (rank 0) writes the run's files and reads requests; the others do as it decides.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from fractions import Fraction
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from trainer import devices, foreign_text, runs
from trainer.config import FILES, TrainConfig, check, with_files_of
from trainer.config.training import TrainingConfig
from trainer.errors import UserError
from trainer.runs import COMMANDS, Command, Run, events
from trainer.training import ranks
from trainer.training.checkpoint import TrainState

# The others wait while the main process waits for the device, and all for the slowest to encode; but not in a step.
PATIENCE = timedelta(days=7)
ANSWERED_WITHIN = timedelta(minutes=30)
CHUNK = 2**26  # bytes that are broadcast at once

_groups: dict[str, Any] = {}  # process groups, by how long their members wait for each other


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
            raise ranks.gone() from error
        raise UserError(
            "Another process of this run did not answer for {minutes:.0f} minutes, so that the run cannot go on.",
            "Check its machine and the network; the run can be resumed from its last checkpoint.",
            minutes=max(1, waited / 60),
        ) from error


def join(precision: str) -> Accelerator:
    """Return this process's device and its connection to the others, if there are any; gloo where there is no GPU.

    Raises:
        NotJoinedError: the others do not answer; a process that goes on alone may join again.
    """
    mixed = "no" if precision == "fp32" else precision
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Accelerator(mixed_precision=mixed, cpu=not devices.count())
    on_cpu, threads = not devices.count(), torch.get_num_threads()
    limits_threads = on_cpu and "OMP_NUM_THREADS" not in os.environ
    if limits_threads:
        # By default each process gets a thread for each core of the machine, and a warning of that.
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, threads // local_processes))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    within = ranks.JOINED_WITHIN if ranks.STARTED_HERE in os.environ else PATIENCE
    # By default a GPU that waits in vain ends the process without a message.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    options: dict[str, Any] = {"timeout": within}
    if sys.platform == "win32":
        options["backend"] = "gloo"  # also between GPUs: there is no NCCL
    try:
        accelerator = Accelerator(
            mixed_precision=mixed, cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(**options)]
        )
        _groups["patient"] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        _groups["prompt"] = torch.distributed.new_group(timeout=ANSWERED_WITHIN)
    except RuntimeError as error:
        AcceleratorState._reset_state(reset_partial_state=True)
        if limits_threads:
            torch.set_num_threads(threads)
            del os.environ["OMP_NUM_THREADS"]
        raise ranks.NotJoinedError from error
    return accelerator


def start_of(accelerator: Accelerator) -> Fraction:
    """Return the position at which this process begins in work that all share."""
    return Fraction(accelerator.process_index, accelerator.num_processes)


def wait(accelerator: Accelerator) -> None:
    """Wait for all processes."""
    largest(accelerator, 0.0)


def share_config(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """Return the main process's settings, and record the number of processes, whoever started them.

    The paths of datasets, models and adapter files remain each machine's own.

    Raises:
        UserError: a batch has fewer images than there are processes.
    """
    processes = accelerator.num_processes
    check(TrainingConfig, config.training.model_dump() | {"devices": processes})
    if processes > 1:
        main = check(TrainConfig, foreign_text.parse_json(broadcast(accelerator, config.model_dump_json().encode())))
        config = with_files_of(main, config)
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
    own: dict[str, Any] = {"dataset": True, "record": True, **{name: set(files) for name, files in FILES.items()}}
    record = config.record
    prints = [value for name, value in record if name.endswith("_sha256")]
    inputs = "".join((config.model_dump_json(exclude=own), *prints))
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
        with _together(ANSWERED_WITHIN):
            torch.distributed.broadcast(chunk, 0, group=_groups["prompt"])
            view.copy_(chunk)
    return bytes(buffer)


def _broadcast_integers(accelerator: Accelerator, values: list[int]) -> list[int]:
    """Return the main process's integers in each process."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64, device=accelerator.device)
    with _together(ANSWERED_WITHIN):
        torch.distributed.broadcast(tensor, 0, group=_groups["prompt"])
        return [int(value) for value in tensor.tolist()]


def reduce_gradients(accelerator: Accelerator, state: TrainState, loss: Tensor) -> Tensor:
    """Sum each gradient over all processes, in one exchange; return the sum of their losses."""
    if accelerator.num_processes == 1:
        return loss
    parameters = state.parameters()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
    total = torch.cat([*(gradient.flatten() for gradient in gradients), loss.flatten()])
    with _together(ANSWERED_WITHIN):
        torch.distributed.all_reduce(total, group=_groups["prompt"])
    *sums, loss = torch.split(total, [*(parameter.numel() for parameter in parameters), 1])
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient.view_as(parameter).clone()
    return loss.reshape(())


def add(accelerator: Accelerator, value: float) -> float:
    """Return the sum of a number over all processes."""
    return _reduce(accelerator, value, "SUM")


def largest(accelerator: Accelerator, value: float) -> float:
    """Return the largest of the processes' values in each process."""
    return _reduce(accelerator, value, "MAX")


def _reduce(accelerator: Accelerator, value: float, operation: Literal["SUM", "MAX"]) -> float:
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    with _together(ANSWERED_WITHIN):
        torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation), group=_groups["prompt"])
        return tensor.item()


def requests(
    accelerator: Accelerator, run: Run, resumed: events.Event, paused: Callable[[], AbstractContextManager[None]]
) -> set[Command]:
    """Return the requests since the last step, as the main process read them.

    While the run is paused all wait here, inside of `paused`, in contact with the main process; the event `resumed` is
    reported afterwards.
    """
    waited = False
    with ExitStack() as stack:
        while True:
            pause = run.is_paused
            values: list[int] = [pause, *(not pause and run.take_request(command) for command in COMMANDS)]
            is_paused, *flags = _broadcast_integers(accelerator, values)
            if not is_paused:
                break
            if not waited:
                stack.enter_context(paused())
            waited = True
            time.sleep(runs.PAUSE_POLL)
    if waited:
        run.report(resumed)
    return {command for command, flag in zip(COMMANDS, flags, strict=True) if flag}
