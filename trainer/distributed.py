"""Several processes on one run, each with a device of its own: who leads, and how what they compute becomes one.

All of them do the same steps on their part of each batch and add up their gradients, so that the adapter is that of
one process. One leads: it alone writes, draws previews and is asked to stop; the others do as it decided.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor

from trainer.checkpoint import Progress
from trainer.config import TrainConfig, check
from trainer.errors import UserError
from trainer.recipe import TrainingConfig
from trainer.runs import COMMANDS, Command, Run

# The others wait while the leader waits for the device, encodes pictures or draws previews.
PATIENCE = timedelta(days=7)
WATCHED_EVERY = 1.0  # seconds


@contextmanager
def followers(run: Run, devices: int) -> Iterator[None]:
    """Start the other processes of a run on this machine, with this one as their leader; end them afterwards.

    Nothing is started where a launcher did it (`accelerate launch`, `torchrun`).

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
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(devices)}
    started = []
    try:
        for rank in reversed(range(devices)):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if rank:
                command = [sys.executable, "-m", "trainer", "work", str(run.folder.resolve())]
                started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def leads() -> bool:
    """Whether this process is the one that writes and decides."""
    return os.environ.get("RANK", "0") == "0"


def follow() -> None:
    """Make this process one that ends with its parent, and leaves it to the leader to hear what it is asked."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED_EVERY)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def join(precision: str) -> Accelerator:
    """This process's device, and its link to the others if there are any; gloo where there is no GPU."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=several and not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)] if several else [],
    )


def shared(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """The settings with as many devices as there are processes, whoever started them.

    Raises:
        UserError: a batch has not a picture for each.
    """
    data = config.training.model_dump() | {"devices": accelerator.num_processes}
    return config.model_copy(update={"training": check(TrainingConfig, data)})


@contextmanager
def _together() -> Iterator[None]:
    """Inside the `with`, what goes wrong is that another process is gone.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "Another process of this run has ended, so that it cannot go on.",
            "The log says why; the run can be resumed from its last checkpoint.",
        ) from error


def add_up(accelerator: Accelerator, progress: Progress, loss: Tensor) -> Tensor:
    """Make each gradient the sum over all processes, in one exchange; returns the loss summed likewise."""
    if accelerator.num_processes == 1:
        return loss
    parameters = progress.parameters()
    flat = [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in parameters]
    with _together():
        total = accelerator.reduce(torch.cat([*flat, loss.flatten()]), reduction="sum")
    *sums, loss = total.split([*(one.numel() for one in parameters), 1])
    for parameter, summed in zip(parameters, sums, strict=True):
        parameter.grad = summed.view_as(parameter).clone()
    return loss.reshape(())


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest of the processes' values, so that they all go by the same."""
    if accelerator.num_processes == 1:
        return value
    gathered: Tensor = accelerator.gather(torch.tensor([value], dtype=torch.float64, device=accelerator.device))
    return float(gathered.max())


def asked(accelerator: Accelerator, run: Run) -> set[Command]:
    """What somebody asked of the run since the last step, as its leader read it."""
    commands: list[set[Command]] = [{command for command in COMMANDS if run.asked(command)}]
    if accelerator.num_processes > 1:
        with _together():
            broadcast_object_list(commands)
    return commands[0]
