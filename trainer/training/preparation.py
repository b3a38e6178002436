"""Prepare a run for its first step: base model, images, and settings with everything resolved."""

from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain

import torch
from accelerate import Accelerator

from trainer import __version__, devices, families, storage
from trainer.base_models import adapter_location
from trainer.config import Record, TrainConfig, adjustments, base_notes
from trainer.data import checks, dataset, image_stats
from trainer.data.dataset import Example
from trainer.data.problems import KINDS, group_by_kind
from trainer.errors import UserError
from trainer.families import Family
from trainer.i18n import _, ngettext
from trainer.runs import Run, events
from trainer.sampling.sampler import native_side
from trainer.training import checkpoint, distributed, held_out, previews
from trainer.training.inputs import augment

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEASURED = 1000  # images at most that are looked at for damage and the like before a run


@dataclass(frozen=True)
class Materials:
    """The base model, the images to train and those held out, and the complete settings."""

    config: TrainConfig
    accelerator: Accelerator
    family: Family
    examples: tuple[Example, ...]
    held: tuple[Example, ...]
    captions: list[str]  # of the examples, as they are without variants


def load(config: TrainConfig, run: Run) -> Materials:
    """Load the base model, find the images, complete the settings and save them once.

    Raises:
        UserError: something that the user can change.
    """
    devices.prepare()
    run.progress(_("Loading the base model"), 0, 1)
    precision = resolve_precision(config)
    accelerator = distributed.join(precision)
    config = distributed.share_config(config, accelerator)
    family = families.read(config.model, accelerator.device, PRECISIONS[precision])
    examples, held = held_out.split(dataset.read_subjects(config.taught), config)
    captions = [augment.caption_variants(example, config)[0] for example in examples]
    record = identify(config, family, (*examples, *held))
    if config.record.dataset_sha256:
        checkpoint.check_unchanged(config.record, record)
    else:
        for note in base_notes.find(config, family.base):  # about what was asked for
            run.warn(note)
        config = complete(config, record, family, captions)
        run.save_config(config)
    warn(run, config, family, captions)
    return Materials(config, accelerator, family, examples, held, captions)


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


def identify(config: TrainConfig, family: Family, examples: tuple[Example, ...]) -> Record:
    """Return what a run is made from: checksums of all its images and of the base model, program, packages, device."""
    parts = {"denoiser": family.denoiser}
    if config.model.vae or not family.base.has_vae:
        parts["vae"] = family.encoders()["vae"]
    known = families.fingerprints(config.model, parts)
    regularization = chain.from_iterable(dataset.read_regularization(config.taught))
    return Record(
        program=__version__,
        dataset_sha256=dataset.digest((*examples, *regularization), by_line=config.captions.multiple),
        base_sha256=known["denoiser"],
        vae_sha256=known.get("vae", ""),
        start_sha256=_checksum(config.adapter.start),
        training_adapter_sha256=_checksum(config.model.training_adapter),
        packages={name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        device=devices.name(family.device),
        devices=config.record.devices,
    )


def _checksum(adapter: str) -> str:
    """Return the SHA-256 of an adapter file that settings name; "" if they name none."""
    return storage.sha256(adapter_location.find(adapter)) if adapter else ""


def complete(config: TrainConfig, record: Record, family: Family, captions: list[str]) -> TrainConfig:
    """Return the settings with everything resolved, from the captions to train, and all that repeats the run."""
    config = adjustments.complete(config, len(captions))
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == family.denoiser.dtype)
    prompts = config.preview.prompts or previews.default_prompts(config, captions)
    base = {
        "family": family.base.family,
        "revision": family.base.revision,
        "clip_skip": config.model.clip_skip if family.spec.clip_skip else 1,
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=base),
            "training": config.training.model_copy(update={"precision": precision}),
            "preview": config.preview.model_copy(update={"prompts": tuple(prompts)}),
            "record": record,
        }
    )


def warn(run: Run, config: TrainConfig, family: Family, captions: list[str]) -> None:
    """Warn about settings and data that are legal but probably unintended."""
    limit = config.captions.chunks * family.count_tokens("")[1]
    if long := sum(family.count_tokens(caption)[0] > limit for caption in captions):
        run.warn(
            ngettext(
                "{n} caption is longer than {limit} tokens; the rest is ignored.",
                "{n} captions are longer than {limit} tokens; the rest is ignored.",
                long,
                limit=limit,
            )
        )
    if config.preservation.share and not config.trigger:
        run.warn(
            "There is no trigger word, so that nothing distinguishes your images from what the base generates without "
            "it: their own captions are left out of output preservation."
        )
    if config.training.resolution < (side := native_side(family)):
        run.warn(
            "The base model generates {side} x {side} pixels; this run trains at {resolution}.",
            side=side,
            resolution=config.training.resolution,
        )
    problems = []
    for subject in config.taught:
        for part in dataset.parts(dataset.find_folder(subject.dataset)):
            if run.is_main:
                image_stats.measure_missing(part.folder, MEASURED)
            problems += checks.examine(
                part.folder,
                subject.trigger,
                preset=config.preset,
                base=config.model.base,
                resolution=config.training.resolution,
            ).problems
    problems = [problem for problem in problems if not problem.hint and problem.kind != "long caption"]
    for problem in group_by_kind(problems):
        kind = KINDS[problem.kind]
        names = f" ({', '.join(problem.names[:5])})" if problem.names else ""
        message = f"{problem.title} {_(kind.effect)} {_(kind.remedy)}{names}"
        run.report(events.Warned(message=message, about_images=not kind.excludes))
