"""train(): the main path of the program, from settings to a finished adapter file."""

import time
from importlib.metadata import version

import psutil
import torch
from accelerate import Accelerator

from trainer import __version__, cache, checkpoint, dataset, events, export, families, files, preview
from trainer.config import Record, TrainConfig, dump, planned_steps
from trainer.dataset import Example
from trainer.errors import UserError
from trainer.loss import training_loss
from trainer.randomness import generator, seed_dropout
from trainer.recipe import TrainingConfig
from trainer.runs import Run
from trainer.schedules import Stable

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(config: TrainConfig, run: Run) -> None:  # noqa: PLR0915 - the main path stays on one screen
    """Train one adapter. The whole program, top to bottom; a run that was interrupted goes on where it was.

    Raises:
        UserError: something that a person can change.
        StopRequestedError: the run was asked to stop before its first step.
    """
    run.progress("Loading the base model", 0, 1)
    precision = resolved_precision(config.training)
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    family = families.load(config.model, accelerator.device, PRECISIONS[precision])
    examples = dataset.read(dataset.folder_of(config.dataset))
    config = complete(config, run, examples, family)
    captions = [dataset.with_trigger(example.caption, config.trigger) for example in examples]
    warn(run, config, family, captions)
    batches = cache.build(family, examples, config, run.progress)

    adapter = families.attach(family, config.adapter, text_encoder=config.training.text_encoder, seed=config.seed)
    optimizer = config.optimizer.build(adapter.groups(config.training.text_encoder_factor))
    parameters = list(adapter.parameters())
    progress = checkpoint.Progress(optimizer)
    step, steps = checkpoint.resume(run, progress), config.training.steps
    facts = export.metadata(family, config, run, captions, len(examples))

    def save() -> None:
        checkpoint.save_checkpoint(run, adapter, progress, step, config.checkpoint.keep, facts)

    run.report(started(step, config, family.device))
    saved = time.monotonic()

    while step < steps:
        begun = time.monotonic()
        loss = torch.zeros((), device=accelerator.device)
        for micro in range(config.training.accumulation):
            rng = generator(config.seed, step, micro, "noise")
            seed_dropout(config.seed, step, micro, "dropout")
            with accelerator.autocast():
                part = training_loss(family, adapter, batches.at(step, micro), config, rng)
            accelerator.backward(part / config.training.accumulation)
            loss += part.detach() / config.training.accumulation
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.training.clip or float("inf"))
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise UserError(
                f"The training became unstable after step {step}: loss {loss.item()}, gradient {norm.item()}.",
                "Lower the learning rate, or train in bf16 or fp32; the last checkpoint is kept.",
            )
        rate = config.optimizer.learning_rate * config.schedule.factor(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
        optimizer.zero_grad()
        step += 1

        run.report(events.Step(
            step=step, loss=loss.item(), learning_rate=rate, grad_norm=norm.item(),
            seconds=time.monotonic() - begun, memory=peak_memory(accelerator.device),
        ))  # fmt: skip
        if due(step, config.preview.every) or step == steps or run.asked("preview"):
            with progress.settled(adapter):
                preview.make(family, adapter, config.preview, run, step)
        if run.asked("cooldown"):
            config = cooled(config, run, step)
            steps = config.training.steps
            run.report(started(step, config, family.device))
        stop = run.asked("stop")
        late = time.monotonic() - saved > 60 * config.checkpoint.minutes
        if due(step, config.checkpoint.every) or step == steps or late or stop or run.asked("checkpoint"):
            save()
            saved = time.monotonic()
        if stop and step < steps:
            return run.report(events.Stopped(step=step))

    with progress.settled(adapter):
        path = export.write(family, adapter, config, run, captions)
    return run.report(events.Finished(step=step, export=path.name))


def started(step: int, config: TrainConfig, device: torch.device) -> events.Started:
    """That the run begins, or goes on, or has another number of steps from here on."""
    return events.Started(step=step, steps=config.training.steps, pid=psutil.Process().pid, device=device_name(device))


def cooled(config: TrainConfig, run: Run, step: int) -> TrainConfig:
    """The settings of a run that begins its cool-down now, if its schedule has one; they are written down."""
    if not isinstance(config.schedule, Stable):
        run.report(events.Warned(message="This schedule has no cool-down that could begin early; the run goes on."))
        return config
    steps = config.schedule.shortened(step, config.training.steps)
    config = config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})
    files.write(run.config_file, dump(config))
    return config


def due(step: int, every: int) -> bool:
    """Whether something that happens each `every` steps happens after this one; 0 = never."""
    return every > 0 and step % every == 0


def resolved_precision(training: TrainingConfig) -> str:
    """What "auto" means here: bf16 on a GPU that has it, fp32 elsewhere."""
    if training.precision != "auto":
        return training.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def complete(config: TrainConfig, run: Run, examples: tuple[Example, ...], family: families.Family) -> TrainConfig:
    """Fill in what was left open, record what else is needed to repeat the run, and write it down once.

    Raises:
        UserError: there are no pictures, or they are not those that the run began with.
    """
    if not examples:
        raise UserError(
            f"There are no pictures in the data set {dataset.folder_of(config.dataset).name!r}.",
            "Add at least 5; 10 to 30 work best.",
        )
    record = Record(
        program=__version__,
        dataset_sha256=dataset.digest(examples),
        base_sha256=families.fingerprint(family.denoiser),
        packages={name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        device=device_name(family.device),
    )
    if config.record.dataset_sha256:
        same_as_begun(config.record, record)
        return config
    captions = [dataset.with_trigger(example.caption, config.trigger) for example in examples]
    training = config.training.model_copy(
        update={
            "steps": planned_steps(config.training, len(examples)),
            "precision": resolved_precision(config.training),
        }
    )
    prompts = config.preview.prompts or preview.default_prompts(config, captions)
    config = config.model_copy(
        update={
            "training": training,
            "preview": config.preview.model_copy(update={"prompts": tuple(prompts)}),
            "record": record,
        }
    )
    files.write(run.config_file, dump(config))
    return config


def same_as_begun(begun: Record, now: Record) -> None:
    """Refuse to go on with other pictures or another base model: the result would be neither run's.

    Raises:
        UserError: something differs; it says what.
    """
    remedy = "Bring it back as it was, or start a new run."
    if begun.dataset_sha256 != now.dataset_sha256:
        raise UserError("The pictures or captions of the data set changed since this run began.", remedy)
    if begun.base_sha256 != now.base_sha256:
        raise UserError("The base model changed since this run began.", remedy)


def warn(run: Run, config: TrainConfig, family: families.Family, captions: list[str]) -> None:
    """Tell what will train, but not as its owner may think."""
    long = [caption for caption in captions if family.count_tokens(caption)[0] > family.count_tokens(caption)[1]]
    if long:
        limit = family.count_tokens(long[0])[1]
        run.report(
            events.Warned(message=f"{len(long)} captions are longer than {limit} tokens; the rest of each is not seen.")
        )
    for problem in dataset.problems(dataset.folder_of(config.dataset), config.trigger)[:20]:
        run.report(
            events.Warned(message=f"{problem.name + ': ' if problem.name else ''}{problem.message} {problem.remedy}")
        )


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def peak_memory(device: torch.device) -> int:
    """Bytes that the training takes on its device: the peak on a GPU, the process's own at present on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
