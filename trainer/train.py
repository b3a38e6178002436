"""train(): the main path of the program, from settings to a finished adapter file."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import chain

import psutil
import torch
from accelerate import Accelerator

from trainer import __version__, devices, families, fault_injection, storage
from trainer.base_models import MICRO
from trainer.config import Record, TrainConfig, adjustments, base_notes
from trainer.config.adjustments import planned_rank, planned_steps
from trainer.data import checks, dataset, image_stats, reach
from trainer.data.captions import without_trigger
from trainer.data.dataset import Example
from trainer.data.problems import KINDS, group_by_kind
from trainer.errors import UserError
from trainer.families import adapter, cpu_kernels
from trainer.i18n import _, ngettext
from trainer.optim.schedules import Stable
from trainer.runs import Run, events
from trainer.sampling.sampler import native_side
from trainer.training import (
    augment,
    checkpoint,
    distributed,
    encode,
    export,
    gauge,
    held_out,
    memory,
    optimizer_step,
    prediction_type,
    previews,
    ranks,
)
from trainer.training.batches import Batches

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESTARTS = 3
MEASURED = 1000  # images at most that are looked at for damage and the like before a run


def train(config: TrainConfig, run: Run) -> None:  # noqa: C901, PLR0915 - the main path stays on one screen
    """Train one adapter: the whole program, top to bottom. An interrupted run continues from its last checkpoint.

    Raises:
        UserError: something that the user can change.
        StopRequestedError: the run was asked to stop before its first step.
    """
    devices.prepare()
    run.progress(_("Loading the base model"), 0, 1)
    precision = resolve_precision(config)
    accelerator = distributed.join(precision)
    config = distributed.share_config(config, accelerator)
    family = families.read(config.model, accelerator.device, PRECISIONS[precision])
    examples, held = held_out.split(dataset.read_subjects(config.taught), config)
    config = complete(config, run, examples, held, family)
    captions = [augment.caption_variants(example, config)[0] for example in examples]
    warn(run, config, family, captions)
    batches = encode.build(family, examples, config, run.progress, distributed.start_of(accelerator), held)
    preview = previews.prepare(family, config, accelerator)
    families.place(family, text_encoder=config.training.text_encoder)
    cpu_kernels.optimize_for_cpu(family, config.training.resolution)
    config = prediction_type.resolve(config, family, batches.at(0, 0), run)
    distributed.check_same(accelerator, config)

    adapter = families.attach(family, config.adapter, text_encoder=config.training.text_encoder, seed=config.seed)
    state = initial_state(config, adapter)
    checkpoint.check_space(run, state, config)
    config = memory.fit(config, family, accelerator, run, largest(accelerator, family, adapter, batches))
    step = checkpoint.resume(run, state, partial(distributed.broadcast, accelerator))
    scaler = optimizer_step.restore_scaler(accelerator.scaler, state)

    def save() -> None:
        metadata = export.metadata(family, config, run, captions, step)
        checkpoint.save_checkpoint(run, adapter, state, step, config.checkpoint, metadata)

    def measure() -> None:
        if held and (due(step, config.held_out.every) or step == config.training.steps):
            with state.exported_weights(adapter):
                measured = held_out.measure(accelerator, family, adapter, batches, config, step)
            run.report(held_out.note(state, config, measured))

    run.report(started(step, config, family.device))
    if step == 0:
        measure()
    if step == 0 and config.preview.at_start and config.preview.every:
        preview.make(family, adapter, run, step)
    saved_at = time.monotonic()

    while not is_over(step, config, state):
        started_at = time.monotonic()
        micro_steps = [(step, micro) for micro in range(config.training.gradient_accumulation)]
        try:
            loss = optimizer_step.compute_gradients(accelerator, family, adapter, batches, config, micro_steps)
            loss *= fault_injection.loss_factor(step + 1)
        except RuntimeError as error:
            config = memory.fall_back(config, family, run, error)
            state.optimizer.zero_grad()
            continue
        loss = distributed.reduce_gradients(accelerator, state, loss)
        rate = config.optimizer.learning_rate * config.schedule.factor(step, config.training.steps)
        norm = optimizer_step.clip(state, config.training.max_grad_norm, scaler)
        if optimizer_step.exploded(norm, step, config, state):
            config, state = restart(config, adapter, run, step, norm)
            step = 0
            run.report(started(step, config, family.device))
            continue
        optimizer_step.check(loss.item(), norm, step, config, scaler)
        try:
            fault_injection.on_advance(step + 1)
            optimizer_step.advance(state, rate, scaler)
        except RuntimeError as error:
            config, state = begin_with_less(config, family, adapter, run, step, error)
            continue
        step += 1
        state.update_ema(step, config.training.ema_decay)

        run.report(completed(step, loss, rate, norm, time.monotonic() - started_at))
        resumed, paused = started(step, config, family.device), partial(memory.set_aside, family)
        requests = distributed.requests(accelerator, run, resumed, paused)
        measure()
        last = is_over(step, config, state)
        if due(step, config.preview.every) or (last and config.preview.every) or "preview" in requests:
            with state.exported_weights(adapter):
                preview.make(family, adapter, run, step)
        if "cooldown" in requests:
            config = cool_down(config, run, step)
            run.report(started(step, config, family.device))
        late = time.monotonic() - saved_at > 60 * config.checkpoint.minutes or held_out.is_lowest(state, config, step)
        if run.is_main and (due(step, config.checkpoint.every) or last or late or requests & {"checkpoint", "stop"}):
            save()
            saved_at = time.monotonic()
        if "stop" in requests and not last:
            return run.report(events.Stopped(step=step))

    if run.is_main:
        exported = held_out.restore_lowest(run, state, config, step)
        with state.exported_weights(adapter):
            checksums = export.write(family, adapter, config, run, captions, exported)
        checksums[run.config_file.name] = storage.sha256(run.config_file)
        run.report(events.Finished(step=step, export=run.export.name, exported=exported, sha256=checksums))


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
            optimizer_step.add_gradient(accelerator, family, adapter, batch.part(number, count), config, place)
        del present
        for parameter in adapter.parameters():
            parameter.grad = None

    return compute


def completed(step: int, loss: torch.Tensor, rate: float, norm: float, seconds: float) -> events.Step:
    """Build the event for a step that took `seconds`."""
    return events.Step(
        step=step,
        loss=loss.item(),
        learning_rate=rate,
        grad_norm=norm,
        seconds=seconds,
        memory=devices.peak_memory(loss.device),
    )


def started(step: int, config: TrainConfig, device: torch.device) -> events.Started:
    """Build the event for a run that starts, continues, or has another number of steps from now on."""
    return events.Started(step=step, steps=config.training.steps, pid=psutil.Process().pid, device=devices.name(device))


def initial_state(config: TrainConfig, adapter: families.Adapter) -> checkpoint.TrainState:
    """Return the optimizer of an adapter, and its moving average if there is one, before the first step."""
    optimizer = config.optimizer.build(adapter.groups(config.training.text_encoder_lr_factor))
    optimizer.zero_grad()  # of a run that starts again
    state = checkpoint.TrainState(optimizer)
    if config.training.ema_decay:
        state.average.extend(parameter.detach().clone() for parameter in state.parameters())
    return state


def begin_with_less(
    config: TrainConfig, family: families.Family, adapter: families.Adapter, run: Run, step: int, error: RuntimeError
) -> tuple[TrainConfig, checkpoint.TrainState]:
    """Return the settings of a run that begins again with less memory, as its optimizer had too little, and its state.

    Raises:
        RuntimeError: the error itself, if it was something else, or not in the first step: which weights the optimizer
            has changed is not known.
    """
    if step:
        raise error
    config = memory.fall_back(config, family, run, error)
    adapter.reset(config.seed)
    return config, initial_state(config, adapter)


def restart(
    config: TrainConfig, adapter: families.Adapter, run: Run, step: int, norm: float
) -> tuple[TrainConfig, checkpoint.TrainState]:
    """Return the settings of a run that starts again at half the learning rate, and its state; save and report them.

    Raises:
        UserError: it has restarted too often.
    """
    if config.record.restarts >= RESTARTS:
        raise UserError(
            "The training became unstable {times} times, each time at half the previous learning rate.",
            "Lower the learning rate or alpha a lot, or look for a broken image.",
            adjustments.lower_learning_rate(config),
            times=RESTARTS + 1,
        )
    rate = config.optimizer.learning_rate / 2
    message = _(
        "The gradient norm jumped to {norm:.3g} at step {step}: the run starts again at a learning rate of {rate:g}.",
        norm=norm,
        step=step,
        rate=rate,
    )
    run.report(events.Warned(message=message))
    config = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"learning_rate": rate}),
            "record": config.record.model_copy(update={"restarts": config.record.restarts + 1}),
        }
    )
    if run.is_main:
        checkpoint.remove_all(run)
    run.save_config(config)
    adapter.reset(config.seed)
    return config, initial_state(config, adapter)


def cool_down(config: TrainConfig, run: Run, step: int) -> TrainConfig:
    """Return the settings of a run that starts its cool-down now, if its schedule has one, and save them."""
    if not isinstance(config.schedule, Stable):
        message = _("This schedule has no cool-down that could start early; the run goes on.")
        run.report(events.Warned(message=message))
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


def resolve_precision(config: TrainConfig) -> str:
    """Return the precision to train in; "auto" is the best for the base on this machine.

    Raises:
        UserError: fp16 without a GPU.
    """
    if config.training.precision == "fp16" and not devices.count():
        raise UserError("fp16 needs a GPU; on a CPU it is slow or does not work.", "Use fp32, bf16 or auto.")
    if config.training.precision != "auto":
        return config.training.precision
    return families.precision(config.model, devices.best())


def complete(
    config: TrainConfig,
    run: Run,
    examples: tuple[Example, ...],
    held: tuple[Example, ...],
    family: families.Family,
) -> TrainConfig:
    """Return the settings with everything resolved and all that is needed to repeat the run, and save them once.

    Raises:
        UserError: the images changed since the run started.
    """
    regularization = chain.from_iterable(dataset.read_regularization(config.taught))
    record = Record(
        program=__version__,
        dataset_sha256=dataset.digest((*examples, *held, *regularization)),
        base_sha256=families.fingerprint(family.denoiser),
        vae_sha256=families.fingerprint(family.encoders()["vae"])
        if config.model.vae or not family.base.has_vae
        else "",
        start_sha256=adapter.start_checksum(config.adapter),
        packages={name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        device=devices.name(family.device),
        devices=config.record.devices,
    )
    if config.record.dataset_sha256:
        checkpoint.check_unchanged(config.record, record)
        return config
    for note in base_notes.find(config, family.base):
        run.report(events.Warned(message=note))
    captions = [augment.caption_variants(example, config)[0] for example in examples]
    beyond = config.model.base == MICRO and reach.is_beyond(gauge.complete(dataset.find_folder(config.dataset), family))
    bare = [without_trigger(example.caption, example.trigger) for example in examples]
    gentler = base_notes.adjust_uncaptioned(config, bare, beyond=beyond)
    if gentler != config:
        run.report(events.Warned(message=base_notes.note_uncaptioned()))
    config = gentler
    training = config.training.model_copy(
        update={
            "steps": planned_steps(config.training, len(examples), len(config.taught)),
            "precision": next(name for name, dtype in PRECISIONS.items() if dtype == family.denoiser.dtype),
        }
    )
    prompts = config.preview.prompts or previews.default_prompts(config, captions)
    base = {
        "family": family.base.family,
        "revision": family.base.revision,
        "clip_skip": config.model.clip_skip if family.spec.clip_skip else 1,
    }
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update=base),
            "adapter": config.adapter.model_copy(update={"rank": planned_rank(config.adapter, len(examples))}),
            "training": training,
            "preview": config.preview.model_copy(update={"prompts": tuple(prompts)}),
            "record": record,
        }
    )
    run.save_config(config)
    return config


def warn(run: Run, config: TrainConfig, family: families.Family, captions: list[str]) -> None:
    """Warn about settings and data that are legal but probably unintended."""
    limit = config.captions.chunks * family.count_tokens("")[1]
    if long := sum(family.count_tokens(caption)[0] > limit for caption in captions):
        message = ngettext(
            "{n} caption is longer than {limit} tokens; the rest is ignored.",
            "{n} captions are longer than {limit} tokens; the rest is ignored.",
            long,
            limit=limit,
        )
        run.report(events.Warned(message=message))
    if config.preservation.share and not config.trigger:
        message = _(
            "There is no trigger word, so that nothing distinguishes your images from what the base generates without "
            "it: their own captions are left out of output preservation."
        )
        run.report(events.Warned(message=message))
    if note := adapter.start_note(config.adapter):
        run.report(events.Warned(message=note))
    if config.training.resolution < (side := native_side(family)):
        message = _(
            "The base model generates {side} x {side} pixels; this run trains at {resolution}.",
            side=side,
            resolution=config.training.resolution,
        )
        run.report(events.Warned(message=message))
    problems = []
    for subject in config.taught:
        for part in dataset.parts(dataset.find_folder(subject.dataset)):
            measured = image_stats.measure_missing(part.folder, MEASURED) if run.is_main else None
            problems += checks.examine(
                part.folder,
                subject.trigger,
                preset=config.preset,
                base=config.model.base,
                resolution=config.training.resolution,
                stats=measured or image_stats.known(part.folder),
            ).problems
    problems = [problem for problem in problems if not problem.hint and problem.kind != "long caption"]
    for problem in group_by_kind(problems):
        kind = KINDS[problem.kind]
        names = f" ({', '.join(problem.names[:5])})" if problem.names else ""
        message = f"{problem.title} {_(kind.effect)} {_(kind.remedy)}{names}"
        run.report(events.Warned(message=message, about_images=problem.kind not in ("unreadable", "folder")))
