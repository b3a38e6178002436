"""Memory plan: measure one batch, and take the first way of training that fits into memory.

Further down the ladder a step takes less memory and more time; what is learned stays the same up to rounding. A batch
is computed in more and more parts, down to single pictures; then the blocks at the largest sizes, then all blocks, are
computed twice instead of being kept (Chen et al. 2016, https://arxiv.org/abs/1604.06174).
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import psutil
import torch
from accelerate import Accelerator

from trainer.config import TrainConfig, adjustments
from trainer.config.training import TrainingConfig
from trainer.errors import UserError, is_out_of_memory
from trainer.families import Family, gradient_checkpointing
from trainer.i18n import say
from trainer.runs import Run, events
from trainer.training import distributed, malloc

SHARE = 0.9  # of the memory that is free; the rest is for what else the machine does
SAMPLED_EVERY = 0.002  # seconds
GB = 2**30
REMEDY = say(
    "Lower the resolution, or keep the base's weights in 8 or 4 bits (model.weights), or close other programs."
)
WAYS: tuple[gradient_checkpointing.Recomputed, ...] = get_args(gradient_checkpointing.Recomputed)


@dataclass(frozen=True)
class Rung:
    """One way to compute a batch: in how many parts, and which blocks twice."""

    parts: int
    recomputed: gradient_checkpointing.Recomputed

    @property
    def weight(self) -> tuple[int, int]:
        """Of two rungs of one ladder, the lower takes less memory."""
        return -WAYS.index(self.recomputed), -self.parts

    def of(self, config: TrainConfig) -> TrainConfig:
        """The settings that say so."""
        changes = {"parts": self.parts, "gradient_checkpointing": self.recomputed}
        return config.model_copy(update={"training": config.training.model_copy(update=changes)})

    def __str__(self) -> str:
        parts = say("a batch is computed at once")
        if self.parts > 1:
            parts = say("a batch is computed in {parts} parts", parts=self.parts)
        if self.recomputed == "off":
            return parts
        blocks = say("the largest blocks twice") if self.recomputed == "large" else say("all blocks twice")
        return say("{parts} and {blocks}", parts=parts, blocks=blocks)


def ladder(training: TrainingConfig, devices: int) -> list[Rung]:
    """The rungs that the settings leave open, from the fastest to the smallest."""
    most = training.batch_size // devices
    counts = [training.parts] if training.parts else [*(2**n for n in range(most.bit_length()) if 2**n < most), most]
    ways = WAYS if training.gradient_checkpointing == "auto" else (training.gradient_checkpointing,)
    return [Rung(count, ways[0]) for count in counts] + [Rung(counts[-1], way) for way in ways[1:]]


def fit(
    config: TrainConfig, family: Family, accelerator: Accelerator, run: Run, compute: Callable[[TrainConfig], None]
) -> TrainConfig:
    """The settings with the first rung that fits, written down; a run that goes on keeps the one it has.

    Args:
        config: settings; what is 'auto' in them is settled here.
        family: the base model with its adapter on it.
        accelerator: the device, and the other processes.
        run: told what was chosen.
        compute: computes the gradients of the largest batch by the settings it is given.

    Raises:
        UserError: nothing fits.
    """
    rungs = ladder(config.training, accelerator.num_processes)
    if len(rungs) > 1:
        run.progress(say("Measuring memory"), 0, 1)
        room = limit(config.training, family.device, accelerator.num_processes)
        room = -distributed.largest(accelerator, -room)
        measure = _on_gpu if family.device.type == "cuda" else _on_cpu
        rung, need = measure(rungs, config, family, accelerator, compute, room)
        if rung is None:
            raise UserError(
                "There is not enough memory: even with one picture at a time a step needs about {need:.1f} GB, and "
                "{room:.1f} GB can be had.",
                REMEDY,
                adjustments.smaller(config),
                need=need / GB,
                room=room / GB,
            )
        if rung != rungs[0]:
            told = say("To fit into {room:.1f} GB of memory, {way}.", room=room / GB, way=rung)
            run.report(events.Warned(message=told))
    else:
        rung = rungs[0]
    config = rung.of(config)
    gradient_checkpointing.recompute(family, rung.recomputed)
    run.keep(config)
    return config


def limit(training: TrainingConfig, device: torch.device, processes: int) -> float:
    """Bytes that this process may take on its device in all."""
    if training.memory:
        return training.memory * GB / (1 if device.type == "cuda" else processes)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return SHARE * (free + torch.cuda.memory_reserved(device))
    return psutil.Process().memory_info().rss + SHARE * psutil.virtual_memory().available / processes


def _on_gpu(
    rungs: list[Rung],
    config: TrainConfig,
    family: Family,
    accelerator: Accelerator,
    compute: Callable[[TrainConfig], None],
    room: float,
) -> tuple[Rung | None, float]:
    """The first rung on which the batch can really be computed within the room, and what it takes."""
    need = 0.0
    for rung in rungs:
        gradient_checkpointing.recompute(family, rung.recomputed)
        release()
        torch.cuda.reset_peak_memory_stats(family.device)
        try:
            compute(rung.of(config))
        except torch.OutOfMemoryError:
            need = float("inf")
        else:
            need = float(torch.cuda.max_memory_reserved(family.device))
        need = distributed.largest(accelerator, need)
        if need <= room:
            return rung, need
    return None, need


def _on_cpu(
    rungs: list[Rung],
    config: TrainConfig,
    family: Family,
    accelerator: Accelerator,
    compute: Callable[[TrainConfig], None],
    room: float,
) -> tuple[Rung | None, float]:
    """The first rung that would stay within the room, and what it would take.

    There a process that takes too much is killed, so that only the smallest part is really computed, and what more
    pictures would take follows from it.
    """
    need, measured = 0.0, dict[str, tuple[float, float]]()
    smallest = rungs[-1].parts
    for rung in rungs:
        if rung.recomputed not in measured:
            gradient_checkpointing.recompute(family, rung.recomputed)
            release()
            before = float(psutil.Process().memory_info().rss)
            with peak() as highest:
                compute(Rung(smallest, rung.recomputed).of(config))
            before = distributed.largest(accelerator, before)
            measured[rung.recomputed] = before, max(0.0, distributed.largest(accelerator, highest[0]) - before)
        before, grown = measured[rung.recomputed]
        need = before + grown * -(-smallest // rung.parts)
        if need <= room:
            return rung, need
    return None, need


@contextmanager
def peak() -> Iterator[list[float]]:
    """The most memory in bytes that this process has at any moment inside the `with`, as the list's only value."""
    process, highest, done = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLED_EVERY):
            highest[0] = max(highest[0], float(process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()
        highest[0] = max(highest[0], float(process.memory_info().rss))


def release() -> None:
    """Give back what is held but not used."""
    gc.collect()
    malloc.trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lighter(config: TrainConfig, family: Family, run: Run, error: RuntimeError) -> TrainConfig:
    """The settings with the next rung below the present one, written down, after a step ran out of memory.

    Raises:
        RuntimeError: the error itself, if it was something else, or there is nothing lighter, or other processes have
            gone on without this one.
    """
    training, devices = config.training, config.record.devices
    rungs = ladder(training.model_copy(update={"parts": 0, "gradient_checkpointing": "auto"}), devices)
    way = "off" if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    below = [rung for rung in rungs if rung.weight < Rung(training.parts, way).weight]
    if not is_out_of_memory(error) or not below or devices > 1:
        raise error
    gradient_checkpointing.recompute(family, below[0].recomputed)
    run.report(events.Warned(message=say("Memory ran out; from here on {way}.", way=below[0])))
    config = below[0].of(config)
    run.keep(config)
    return config
