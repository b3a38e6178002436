"""train(): the main path of the program, from settings to a finished adapter file."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import psutil
import torch
from accelerate import Accelerator

from trainer import devices, families, storage
from trainer.config import TrainConfig
from trainer.families.hardware import cpu_kernels
from trainer.optim.schedules import Stable
from trainer.rng import generator
from trainer.runs import Run, events
from trainer.training import (
    checkpoint,
    distributed,
    export,
    held_out,
    memory,
    optimizer_step,
    prediction_type,
    preparation,
    previews,
    ranks,
    result_check,
)
from trainer.training.checkpoint import TrainState
from trainer.training.inputs import encode
from trainer.training.inputs.batches import Batches
from trainer.training.loss import training_loss
from trainer.training.optimizer_step import ExplodedError, Readings
from trainer.training.recovery import Recovery, initial_state


def train(config: TrainConfig, run: Run) -> None:  # noqa: PLR0915 - the main path stays on one screen
    """Train one adapter: the whole program, top to bottom. An interrupted run continues from its last checkpoint.

    Raises:
        UserError: something that the user can change.
        StopRequestedError: the run was asked to stop before its first step.
    """
    # Load the base model, and encode images and captions once.
    materials = preparation.load(config, run)
    config, accelerator, family = materials.config, materials.accelerator, materials.family
    start = distributed.start_of(accelerator)
    batches = encode.build(family, materials.examples, config, run.progress, start, materials.held)
    preview = previews.prepare(family, config, accelerator)
    families.place(family, text_encoder=config.training.text_encoder)
    cpu_kernels.optimize_for_cpu(family, config.training.resolution)
    config = prediction_type.resolve(config, family, batches.at(0, 0), run)
    distributed.check_same(accelerator, config)

    # Attach the adapter, fit the run into memory, and continue where it was.
    adapter = families.attach(family, config.adapter, text_encoder=config.training.text_encoder, seed=config.seed)
    state, recovery = initial_state(config, adapter), Recovery(family, adapter, run)
    checkpoint.check_space(run, state, config)
    config = memory.fit(config, family, accelerator, run, largest(accelerator, family, adapter, batches))
    step = checkpoint.resume(run, state, partial(distributed.broadcast, accelerator))
    scaler = optimizer_step.restore_scaler(accelerator.scaler, state)
    after = AfterStep(run, adapter, batches, preview, materials, Readings(run, accelerator, scaler))
    run.report(started(step, config, family.device))
    if step == 0:
        after.begin(config, state)

    while not is_over(step, config, state):
        started_at, accumulation = time.monotonic(), config.training.gradient_accumulation
        places = [(step, micro) for micro in range(accumulation)]
        loss = torch.zeros((), device=accelerator.device)
        try:
            for batch, rng in optimizer_step.micro_batches(accelerator, family, adapter, batches, config, places):
                with accelerator.autocast():
                    part = training_loss(family, adapter, batch, config, rng)  # forward: add noise, predict, compare
                accelerator.backward(part / accumulation)  # the gradients of all micro-batches add up
                loss += part.detach() / accumulation
        except RuntimeError as error:
            config = recovery.with_less_memory(config, state, error)
            continue
        loss = distributed.reduce_gradients(accelerator, state, loss)

        # Step: follow the gradient.
        rate = config.optimizer.learning_rate * config.schedule.factor(step, config.training.steps)
        norm = optimizer_step.clip(state, config.training.max_grad_norm, scaler)
        try:
            optimizer_step.advance(state, rate, scaler)
        except RuntimeError as error:
            config, state = recovery.from_start_with_less(config, step, error)
            continue
        step += 1
        state.update_ema(step, config.training.ema_decay)
        after.readings.add(step, loss, norm, rate, started_at)

        # Look at the numbers, measure, preview, save, and do what was asked for.
        try:
            config, stopped = after.work(config, state, step)
        except ExplodedError as jump:
            config, state = recovery.at_half_the_rate(config, jump.step, jump.norm)
            step = 0
            run.report(started(step, config, family.device))
            continue
        if stopped:
            return run.report(events.Stopped(step=step))

    # Write the adapter file.
    if run.is_main:
        exported = held_out.restore_lowest(run, state, config, step)
        with state.exported_weights(adapter):
            checksums = export.write(family, adapter, config, run, materials.captions, exported)
        checksums[run.config_file.name] = storage.sha256(run.config_file)
        run.report(events.Finished(step=step, export=run.export.name, exported=exported, sha256=checksums))


@dataclass
class AfterStep:
    """Work after a step: held-out loss, previews, requests and checkpoints, in this order."""

    run: Run
    adapter: families.Adapter
    batches: Batches
    preview: previews.Previews
    materials: preparation.Materials
    readings: Readings
    saved_at: float = field(default_factory=time.monotonic)

    def begin(self, config: TrainConfig, state: TrainState) -> None:
        """Measure and preview the base model, before the first step; say what was lost of an adapter to start from."""
        if note := families.start_note(self.adapter):
            self.run.warn(note)
        self.measure(config, state, 0)
        if config.preview.at_start and config.preview.every:
            self.preview.make(self.materials.family, self.adapter, self.run, 0)
        self.saved_at = time.monotonic()

    def work(self, config: TrainConfig, state: TrainState, step: int) -> tuple[TrainConfig, bool]:
        """Do what is due after a step; return the settings, which a cool-down changes, and whether the run stops."""
        run, family = self.run, self.materials.family
        self.readings.report(config, state)
        resumed, paused = started(step, config, family.device), partial(memory.set_aside, family)
        requests = distributed.requests(self.materials.accelerator, run, resumed, paused)
        is_late = time.monotonic() - self.saved_at > 60 * config.checkpoint.minutes
        regular = (config.preview.every, config.checkpoint.every, config.held_out.every, config.training.steps)
        if requests or is_late or any(due(step, every) for every in regular):
            self.readings.report(config, state, every=True)
        self.measure(config, state, step)
        last = is_over(step, config, state)
        if due(step, config.preview.every) or (last and config.preview.every) or "preview" in requests:
            with state.exported_weights(self.adapter):
                self.preview.make(family, self.adapter, run, step)
        if run.is_main and last:
            result_check.report(run, config, self.materials, step)
        if "cooldown" in requests:
            config = cool_down(config, run, step)
            run.report(started(step, config, family.device))
        is_asked_for = bool(requests & {"checkpoint", "stop"}) or held_out.is_lowest(state, config, step)
        if run.is_main and (due(step, config.checkpoint.every) or last or is_late or is_asked_for):
            metadata = export.metadata(family, config, run, self.materials.captions, step)
            checkpoint.save_checkpoint(run, self.adapter, state, step, config.checkpoint, metadata)
            self.saved_at = time.monotonic()
        return config, "stop" in requests and not last

    def measure(self, config: TrainConfig, state: TrainState, step: int) -> None:
        """Report the loss of the held-out images, if that is due."""
        if not self.batches.held_count or not (due(step, config.held_out.every) or step == config.training.steps):
            return
        with state.exported_weights(self.adapter):
            model = self.materials.accelerator, self.materials.family, self.adapter
            measured = held_out.measure(*model, self.batches, config, step)
        self.run.report(held_out.note(state, config, measured))


def follow(run: Run) -> None:
    """Train beside the main process, which alone reports on the run.

    Spawned processes import this module; they could not import `__main__`, as which `python -m trainer` runs.
    """
    ranks.follow()
    train(run.config(), run)


def largest(
    accelerator: Accelerator, family: families.Family, adapter: families.Adapter, batches: Batches
) -> Callable[[TrainConfig], None]:
    """Return a function that computes and discards gradients of a run's largest batch, to measure its memory.

    Two micro-batches are enough: the second takes the most, as the gradient of the first is there already.
    """

    def compute(config: TrainConfig) -> None:
        place = batches.largest(config.training.steps)
        batch, count = batches.at(*place), config.training.micro_batches * accelerator.num_processes
        # On a CPU the difference between two measurements counts, which the optimizer has no part in.
        present = optimizer_step.rehearse(config, adapter) if devices.is_accelerator(family.device) else None
        for number in range(accelerator.process_index, count, accelerator.num_processes)[:2]:
            for part in batch.part(number, count).passes():
                rng = generator(config.seed, *place, "noise")
                optimizer_step.add_gradient(accelerator, family, adapter, part, config, rng)
        del present
        for parameter in adapter.parameters():
            parameter.grad = None

    return compute


def started(step: int, config: TrainConfig, device: torch.device) -> events.Started:
    """Build the event for a run that starts, continues, or has another number of steps from now on."""
    return events.Started(step=step, steps=config.training.steps, pid=psutil.Process().pid, device=devices.name(device))


def cool_down(config: TrainConfig, run: Run, step: int) -> TrainConfig:
    """Return the settings of a run that starts its cool-down now, if its schedule has one, and save them."""
    if not isinstance(config.schedule, Stable):
        run.warn("This schedule has no cool-down that could start early; the run goes on.")
        return config
    steps = config.schedule.shortened(step, config.training.steps)
    config = config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})
    run.save_config(config)
    return config


def is_over(step: int, config: TrainConfig, state: checkpoint.TrainState) -> bool:
    """Return True if a run has had its steps, or its held-out images say that more do not help."""
    return step >= config.training.steps or held_out.is_over(state.held_out, config.held_out.patience)


def due(step: int, every: int) -> bool:
    """Return True if something that happens every `every` steps is due after this step; 0 = never."""
    return every > 0 and step % every == 0
