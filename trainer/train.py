"""train(): the main path of the program, from settings to a finished adapter file."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import psutil
import torch
from accelerate import Accelerator

from trainer import __version__, families, fault_injection
from trainer.base_models import MICRO
from trainer.config import Record, TrainConfig, adjustments, uncaptioned
from trainer.config.adjustments import planned_rank, planned_steps
from trainer.data import checks, dataset, image_stats, reach
from trainer.data.dataset import Example
from trainer.errors import UserError
from trainer.families import cpu_kernels
from trainer.i18n import count, say
from trainer.optim.schedules import Stable
from trainer.runs import Run, events
from trainer.sampling.sampler import native_side
from trainer.training import (
    caption_variants,
    checkpoint,
    distributed,
    encode,
    export,
    gauge,
    memory,
    optimizer_step,
    prediction_type,
    previews,
)
from trainer.training.batches import Batches

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESTARTS = 3


def train(config: TrainConfig, run: Run) -> None:  # noqa: PLR0915 - the main path stays on one screen
    """Train one adapter. The whole program, top to bottom; a run that was interrupted goes on where it was.

    Raises:
        UserError: something that a person can change.
        StopRequestedError: the run was asked to stop before its first step.
    """
    run.progress(say("Loading the base model"), 0, 1)
    precision = resolved_precision(config)
    accelerator = distributed.join(precision)
    config = distributed.shared(config, accelerator)
    family = families.read(config.model, accelerator.device, PRECISIONS[precision])
    examples = dataset.read(dataset.folder_of(config.dataset))
    config = complete(config, run, examples, family)
    texts = [caption_variants.texts(example, config, config.trigger) for example in examples]
    warn(run, config, family, texts)
    batches = encode.build(family, examples, config, run.progress, distributed.share(accelerator))
    families.place(family, text_encoder=config.training.text_encoder)
    cpu_kernels.suit_processor(family, config.training.resolution)
    config = prediction_type.settle(config, family, batches.at(0, 0), run)
    distributed.agree(accelerator, config)

    adapter = families.attach(family, config.adapter, text_encoder=config.training.text_encoder, seed=config.seed)
    progress = begin(config, adapter)
    checkpoint.check_room(run, progress, config.checkpoint.keep)
    config = memory.fit(config, family, accelerator, run, largest(accelerator, family, adapter, batches))
    step = checkpoint.resume(run, progress, partial(distributed.give, accelerator))
    scaler = optimizer_step.scaled(accelerator.scaler, progress)
    written = [first for first, *_ in texts]

    def save() -> None:
        facts = export.metadata(family, config, run, written, len(examples))
        checkpoint.save_checkpoint(run, adapter, progress, step, config.checkpoint.keep, facts)

    run.report(started(step, config, family.device))
    saved = time.monotonic()

    while step < config.training.steps:
        begun = time.monotonic()
        try:
            share = fault_injection.factor(step + 1) * optimizer_step.gradients(
                accelerator, family, adapter, batches, config, step
            )
        except RuntimeError as error:
            config = memory.lighter(config, family, run, error)
            progress.optimizer.zero_grad()
            continue
        loss = distributed.add_up(accelerator, progress, share)
        rate = config.optimizer.learning_rate * config.schedule.factor(step, config.training.steps)
        norm = optimizer_step.clip(progress, config.training.clip, scaler)
        if optimizer_step.exploded(norm, step, config, progress):
            config, step = restarted(config, run, step, norm), 0
            adapter.reset(config.seed)
            progress = begin(config, adapter)
            run.report(started(step, config, family.device))
            continue
        optimizer_step.check(loss.item(), norm, step, config, scaler)
        optimizer_step.advance(progress, rate, scaler)
        step += 1
        progress.follow(step, config.training.ema)

        run.report(events.Step(
            step=step, loss=loss.item(), learning_rate=rate, grad_norm=norm,
            seconds=time.monotonic() - begun, memory=peak_memory(accelerator.device),
        ))  # fmt: skip
        asked = distributed.asked(accelerator, run, started(step, config, family.device))
        last = step == config.training.steps
        if due(step, config.preview.every) or last or "preview" in asked:
            with progress.settled(adapter):
                previews.make(family, adapter, config.preview, run, step, accelerator)
        if "cooldown" in asked:
            config = cooled(config, run, step)
            run.report(started(step, config, family.device))
        late = time.monotonic() - saved > 60 * config.checkpoint.minutes
        if run.leads and (due(step, config.checkpoint.every) or last or late or asked & {"checkpoint", "stop"}):
            save()
            saved = time.monotonic()
        if "stop" in asked and not last:
            return run.report(events.Stopped(step=step))

    if not run.leads:
        return None
    with progress.settled(adapter):
        path = export.write(family, adapter, config, run, written)
    return run.report(events.Finished(step=step, export=path.name))


def follow(run: Run) -> None:
    """Do a run beside the process that leads it, which alone tells how it goes.

    It stands in a module that a new process can import: what was begun as `python -m trainer` is no such module.
    """
    distributed.follow()
    train(run.config(), run)


def largest(
    accelerator: Accelerator, family: families.Family, adapter: families.Adapter, batches: Batches
) -> Callable[[TrainConfig], None]:
    """Return a function that computes and discards the gradient of a run's largest batch, to measure its memory."""

    def compute(config: TrainConfig) -> None:
        place = batches.largest(config.training.steps)
        optimizer_step.backward(accelerator, family, adapter, batches.at(*place), config, place)
        for parameter in adapter.parameters():
            parameter.grad = None

    return compute


def started(step: int, config: TrainConfig, device: torch.device) -> events.Started:
    """That the run begins, or goes on, or has another number of steps from here on."""
    return events.Started(step=step, steps=config.training.steps, pid=psutil.Process().pid, device=device_name(device))


def begin(config: TrainConfig, adapter: families.Adapter) -> checkpoint.Progress:
    """The optimizer over an adapter, and its running mean if there is to be one, before the first step."""
    optimizer = config.optimizer.build(adapter.groups(config.training.text_encoder_factor))
    optimizer.zero_grad()  # of a run that begins again
    progress = checkpoint.Progress(optimizer)
    if config.training.ema:
        progress.average.extend(parameter.detach().clone() for parameter in progress.parameters())
    return progress


def restarted(config: TrainConfig, run: Run, step: int, norm: float) -> TrainConfig:
    """The settings of a run that begins again at half the learning rate; they are written down, and it is said.

    Raises:
        UserError: it was done before, again and again.
    """
    if config.record.restarts >= RESTARTS:
        raise UserError(
            "The training became unstable {times} times, each time at half the learning rate of before.",
            "Lower the learning rate or alpha much, or look for a broken picture.",
            adjustments.calmer(config),
            times=RESTARTS + 1,
        )
    rate = config.optimizer.learning_rate / 2
    message = say(
        "The gradient jumped to {norm:.3g} at step {step}: the run begins again at a learning rate of {rate:g}.",
        norm=norm, step=step, rate=rate,
    )  # fmt: skip
    run.report(events.Warned(message=message))
    config = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"learning_rate": rate}),
            "record": config.record.model_copy(update={"restarts": config.record.restarts + 1}),
        }
    )
    if run.leads:
        checkpoint.forget(run)
    run.keep(config)
    return config


def cooled(config: TrainConfig, run: Run, step: int) -> TrainConfig:
    """The settings of a run that begins its cool-down now, if its schedule has one; they are written down."""
    if not isinstance(config.schedule, Stable):
        told = say("This schedule has no cool-down that could begin early; the run goes on.")
        run.report(events.Warned(message=told))
        return config
    steps = config.schedule.shortened(step, config.training.steps)
    config = config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})
    run.keep(config)
    return config


def due(step: int, every: int) -> bool:
    """Tell whether something that happens every `every` steps is due after this step; 0 = never."""
    return every > 0 and step % every == 0


def resolved_precision(config: TrainConfig) -> str:
    """The precision to train in; "auto" is what serves the base best on this machine.

    Raises:
        UserError: fp16 without a GPU.
    """
    if config.training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU; a CPU computes in it slowly or not at all.", "Use fp32, bf16 or auto.")
    if config.training.precision != "auto":
        return config.training.precision
    return families.precision(config.model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def complete(config: TrainConfig, run: Run, examples: tuple[Example, ...], family: families.Family) -> TrainConfig:
    """Fill in what was left open, record what else is needed to repeat the run, and write it down once.

    Raises:
        UserError: there are no pictures, or they are not those that the run began with.
    """
    if not examples:
        raise UserError(
            "There are no pictures in the data set {name!r}.",
            "Add at least 5; 10 to 30 work best.",
            name=dataset.folder_of(config.dataset).name,
        )
    record = Record(
        program=__version__,
        dataset_sha256=dataset.digest((*examples, *dataset.read_prior(config.prior.dataset))),
        base_sha256=families.fingerprint(family.denoiser),
        packages={name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        device=device_name(family.device),
        devices=config.record.devices,
    )
    if config.record.dataset_sha256:
        same_as_begun(config.record, record)
        return config
    written = [caption_variants.texts(example, config, config.trigger)[0] for example in examples]
    beyond = config.model.base == MICRO and reach.is_beyond(gauge.complete(dataset.folder_of(config.dataset), family))
    gentle = uncaptioned.gentler(config, written, beyond=beyond)
    if gentle != config:
        run.report(events.Warned(message=uncaptioned.note()))
    config = gentle
    training = config.training.model_copy(
        update={
            "steps": planned_steps(config.training, len(examples)),
            "precision": next(name for name, dtype in PRECISIONS.items() if dtype == family.denoiser.dtype),
        }
    )
    prompts = config.preview.prompts or previews.default_prompts(config, written)
    model = {"family": family.found.family, "revision": family.found.revision}
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "adapter": config.adapter.model_copy(update={"rank": planned_rank(config.adapter, len(examples))}),
            "training": training,
            "preview": config.preview.model_copy(update={"prompts": tuple(prompts)}),
            "record": record,
        }
    )
    run.keep(config)
    return config


def same_as_begun(begun: Record, now: Record) -> None:
    """Refuse to go on with other pictures or another base model: the result would be neither run's.

    Raises:
        UserError: something differs; it says what.
    """
    remedy = say("Bring it back as it was, or start a new run.")
    if begun.dataset_sha256 != now.dataset_sha256:
        raise UserError("The pictures or captions of the data set changed since this run began.", remedy)
    if begun.base_sha256 != now.base_sha256:
        raise UserError("The base model changed since this run began.", remedy)


def warn(run: Run, config: TrainConfig, family: families.Family, texts: list[tuple[str, ...]]) -> None:
    """Tell what will train, but not as its owner may think."""
    limit = config.captions.chunks * family.count_tokens("")[1]
    if long := sum(family.count_tokens(first)[0] > limit for first, *_ in texts):
        told = count(
            "{n} caption is longer than {limit} tokens; the rest of it is not seen.",
            "{n} captions are longer than {limit} tokens; the rest of each is not seen.", long, limit=limit,
        )  # fmt: skip
        run.report(events.Warned(message=told))
    if config.preservation.share and not config.trigger:
        told = say(
            "There is no trigger word, so that nothing sets your images apart from what the base is asked for without "
            "it: they are not preserved under their own captions."
        )
        run.report(events.Warned(message=told))
    side = native_side(family)
    if config.training.resolution < side:
        told = say(
            "The base model draws {side} x {side} pixels; this run trains at {resolution}.",
            side=side, resolution=config.training.resolution,
        )  # fmt: skip
        run.report(events.Warned(message=told))
    folder = dataset.folder_of(config.dataset)
    found = checks.find(
        folder, config.trigger, preset=config.preset, base=config.model.base, resolution=config.training.resolution,
        measured=image_stats.known(folder),
    )  # fmt: skip
    for one in checks.gathered([problem for problem in found if not problem.hint and problem.kind != "long caption"]):
        kind = checks.KINDS[one.kind]
        names = f" ({', '.join(one.names[:5])})" if one.names else ""
        run.report(events.Warned(message=f"{one.title} {say(kind.effect)} {say(kind.remedy)}{names}"))


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def peak_memory(device: torch.device) -> int:
    """Bytes that the training takes on its device: the peak on a GPU, the process's own at present on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
