"""Memory plan: measure one batch, and take the fastest way of training that fits into memory.

From plan to plan a step takes less memory and more time; the result stays the same up to rounding. A batch is split
into more and more micro-batches, down to single images; then more and more blocks are computed twice instead of keeping
their activations; and at last the weights of half the blocks, or of all, wait in main memory.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

import psutil
import torch
from accelerate import Accelerator

from trainer import devices, processes
from trainer.config import TrainConfig, adjustments
from trainer.config.training import TrainingConfig
from trainer.errors import UserError, is_out_of_memory
from trainer.families import Family
from trainer.families.hardware import gradient_checkpointing, offload
from trainer.i18n import _
from trainer.runs import Run, events
from trainer.training import distributed

SHARE = 0.9  # of free main memory; the rest is for everything else on the machine
SAMPLED_EVERY = 0.002  # seconds
GB = 2**30
REMEDY = _(
    "Lower the resolution, or quantize the base's weights to 8 or 4 bits (model.weights), or close other programs."
)
COMPUTED_TWICE = {
    "feed-forward": _("the feed-forward layers are computed twice"),
    "half": _("half of the transformer blocks are computed twice"),
    "transformers": _("the transformer blocks are computed twice"),
    "all": _("all blocks are computed twice"),
}
WAITING = {
    "half": _("the weights of half the blocks wait in main memory"),
    "all": _("the weights of the blocks wait in main memory"),
}
CHECKPOINTING: tuple[gradient_checkpointing.Recomputed, ...] = get_args(gradient_checkpointing.Recomputed)
OFFLOADED: tuple[gradient_checkpointing.Waiting, ...] = get_args(gradient_checkpointing.Waiting)


@dataclass(frozen=True)
class MemoryPlan:
    """One way to compute a batch: in how many micro-batches, which blocks twice, and which wait in main memory."""

    micro_batches: int
    recomputed: gradient_checkpointing.Recomputed
    waiting: gradient_checkpointing.Waiting = "off"

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key: of two plans for the same settings, the lower takes less memory."""
        return -OFFLOADED.index(self.waiting), -CHECKPOINTING.index(self.recomputed), -self.micro_batches

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Return the settings with this plan."""
        changes = {
            "micro_batches": self.micro_batches,
            "gradient_checkpointing": self.recomputed,
            "offload": self.waiting,
        }
        return config.model_copy(update={"training": config.training.model_copy(update=changes)})

    def prepare(self, family: Family) -> None:
        """Have a base model compute so from now on.

        Raises:
            RuntimeError: its device has too little memory for the weights.
        """
        gradient_checkpointing.recompute(family, self.recomputed, self.waiting)

    def __str__(self) -> str:
        parts = _("batches are computed at once")
        if self.micro_batches > 1:
            parts = _("batches are split into {parts} micro-batches", parts=self.micro_batches)
        if self.waiting != "off":
            parts = f"{parts}, {WAITING[self.waiting]}"
        if self.recomputed == "off":
            return parts
        return _("{parts} and {blocks}", parts=parts, blocks=COMPUTED_TWICE[self.recomputed])


def plans(training: TrainingConfig, processes: int, device: torch.device) -> list[MemoryPlan]:
    """List the plans that the settings leave open, from the fastest to the one with the least memory."""
    most = training.batch_size // processes
    counts = [2**n for n in range(most.bit_length()) if 2**n < most] + [most]
    if training.micro_batches:
        counts = [training.micro_batches]
    waits = OFFLOADED if training.offload == "auto" else (training.offload,)
    if not devices.has_own_memory(device):
        waits = ("off",)
    ways = CHECKPOINTING if training.gradient_checkpointing == "auto" else (training.gradient_checkpointing,)
    if waits[0] != "off":
        ways = ("all",)
    candidates = [MemoryPlan(count, ways[0], waits[0]) for count in counts]
    candidates += [MemoryPlan(counts[-1], way, waits[0]) for way in ways[1:]]
    return candidates + [MemoryPlan(counts[-1], "all", wait) for wait in waits[1:] if ways[-1] == "all"]


def fit(
    config: TrainConfig, family: Family, accelerator: Accelerator, run: Run, compute: Callable[[TrainConfig], None]
) -> TrainConfig:
    """Return the settings with the first plan that fits, and save them; a resumed run keeps the plan it has.

    Args:
        config: settings; the plan replaces 'auto' in them.
        family: the base model with its adapter attached.
        accelerator: the device, and the other processes.
        run: reports the plan if it is not the fastest.
        compute: computes the gradients of the largest batch with the settings it gets.

    Raises:
        UserError: none fits.
    """
    candidates = plans(config.training, accelerator.num_processes, family.device)
    plan = candidates[0]
    room = limit(config.training, family.device, accelerator.num_processes)
    room = -distributed.largest(accelerator, -room)
    devices.limit_memory(family.device, room)
    if len(candidates) > 1:
        run.progress(_("Measuring memory"), 0, 1)
        measurement = _Measurement(config, family, accelerator, compute, candidates[-1].micro_batches)
        fitting = next((plan for plan in candidates if measurement.need(plan) <= room), None)
        if fitting is None:
            raise UserError(
                "There is not enough memory: even with one image at a time a step needs more than the {room:.1f} GB "
                "that are available.",
                REMEDY,
                adjustments.lower_resolution(config),
                room=room / GB,
            )
        plan = fitting
        if plan != candidates[0]:
            message = _("To fit into {room:.1f} GB of memory, {way}.", room=room / GB, way=plan)
            run.report(events.Warned(message=message))
    config = plan.apply(config)
    plan.prepare(family)
    run.save_config(config)
    return config


def limit(training: TrainingConfig, device: torch.device, processes: int) -> float:
    """Return the bytes that this process may take on its device in all."""
    if training.memory:
        return training.memory * GB if devices.is_accelerator(device) else training.memory * GB / processes
    if devices.is_accelerator(device):
        return devices.available_memory(device) - devices.LEFT
    return psutil.Process().memory_info().rss + SHARE * psutil.virtual_memory().available / processes


@dataclass
class _Measurement:
    """Measurement of the bytes that plans take for the largest batch, in the process that takes the most."""

    config: TrainConfig
    family: Family
    accelerator: Accelerator
    compute: Callable[[TrainConfig], None]
    most_parts: int
    _measured: dict[str, tuple[float, float]] = field(default_factory=dict)

    def need(self, plan: MemoryPlan) -> float:
        """Return the bytes that a plan takes."""
        if devices.is_accelerator(self.family.device):
            return self._on_accelerator(plan)
        return self._on_cpu(plan)

    def _on_accelerator(self, plan: MemoryPlan) -> float:
        """Compute the batch; infinite if the memory runs out."""
        try:
            plan.prepare(self.family)
            release()
            devices.reset_peak(self.family.device)
            self.compute(plan.apply(self.config))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            need = float("inf")
        else:
            need = float(devices.peak_reserved(self.family.device))
        return distributed.largest(self.accelerator, need)

    def _on_cpu(self, plan: MemoryPlan) -> float:
        """Compute the smallest micro-batch only, from which the memory for more images follows.

        A process that takes too much is killed on a CPU.
        """
        if plan.recomputed not in self._measured:
            plan.prepare(self.family)
            release()
            before = float(psutil.Process().memory_info().rss)
            with peak() as highest:
                self.compute(MemoryPlan(self.most_parts, plan.recomputed).apply(self.config))
            before = distributed.largest(self.accelerator, before)
            growth = max(0.0, distributed.largest(self.accelerator, highest[0]) - before)
            self._measured[plan.recomputed] = before, growth
        before, growth = self._measured[plan.recomputed]
        return before + growth * -(-self.most_parts // plan.micro_batches)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Measure the peak memory of this process in bytes inside the `with`; it is the list's only value.

    Where the system does not count it, a thread looks again and again, and can miss a short one on a busy machine.
    """
    highest = [0.0]
    if devices.reset_peak(torch.device("cpu")):
        try:
            yield highest
        finally:
            highest[0] = float(devices.peak_memory(torch.device("cpu")))
        return
    process, done = psutil.Process(), threading.Event()

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
    """Return memory to the system that is held but not used."""
    gc.collect()
    processes.trim_malloc()
    devices.trim()


@contextmanager
def set_aside(family: Family) -> Iterator[None]:
    """Keep the denoiser in main memory inside the `with`, while a run is paused: others have its device meanwhile."""
    if not devices.is_accelerator(family.device):
        yield
        return
    offload.move(family.denoiser, "cpu")
    release()
    try:
        yield
    finally:
        offload.move(family.denoiser, family.device)


def fall_back(config: TrainConfig, family: Family, run: Run, error: RuntimeError) -> TrainConfig:
    """Return the settings with the next plan that takes less memory, and save them, after a step ran out of memory.

    Raises:
        RuntimeError: the error itself, if it was something else, or no plan takes less memory, or other processes have
            gone on without this one.
    """
    training, processes = config.training, config.record.devices
    open_again = {"micro_batches": 0, "gradient_checkpointing": "auto", "offload": "auto"}
    candidates = plans(training.model_copy(update=open_again), processes, family.device)
    way = "off" if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    wait = "off" if training.offload == "auto" else training.offload
    smaller = [plan for plan in candidates if plan.order < MemoryPlan(training.micro_batches, way, wait).order]
    if not is_out_of_memory(error) or not smaller or processes > 1:
        raise error
    smaller[0].prepare(family)
    run.report(events.Warned(message=_("Memory ran out; from here on {way}.", way=smaller[0])))
    config = smaller[0].apply(config)
    run.save_config(config)
    return config
