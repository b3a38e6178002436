"""The base model of a run: check that it can be used, and notes on it. Torch-free."""

from pathlib import PurePath

from trainer.base_models import adapter_location, detect, name_hints, vae
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.i18n import _

MOST_STEPS, MOST_GUIDANCE = 16, 2.0  # of previews with a few-step adapter, without a note


def check(config: TrainConfig) -> None:
    """Check that a run can start with its base model, and the other files that it names.

    Raises:
        UserError: one of them is not on this machine, or cannot be used; it says why.
    """
    model = config.model
    path, _commit = detect.locate(model.base, model.revision)
    vae.find(path, detect.look(path), model.vae)
    for adapter in filter(None, (model.training_adapter, config.preview.adapter)):
        adapter_location.find(adapter)


def find(config: TrainConfig, base: Base) -> list[str]:
    """List the notes on a run's base model, each a sentence or two."""
    notes, family = list[str](), FAMILIES[base.family]
    if config.model.training_adapter:
        note = _(
            "While training, {file} is added to the base model. Previews and the finished adapter leave it out.",
            file=PurePath(config.model.training_adapter).name,
        )
        notes.append(note)
    elif base.few_step:
        note = _(
            "This model is distilled to generate in few steps ({kind}), and training on it costs some of that ability. "
            "Rather train on the model that it was made from: the adapter works with both.",
            kind=base.few_step.title,
        )
        if family.training_adapter:
            other = _("Or set the training adapter (model.training_adapter) {name}.", name=family.training_adapter)
            note = f"{note} {other}"
        notes.append(note)
    few_step = name_hints.of_adapter(config.preview.adapter)
    if few_step and (config.preview.steps > MOST_STEPS or config.preview.guidance > MOST_GUIDANCE):
        note = _(
            "Previews take {steps} steps at guidance {guidance:g}, but {kind} adapters are made for about {few} steps "
            "at {low:g}: set preview.steps and preview.guidance.",
            steps=config.preview.steps,
            guidance=config.preview.guidance,
            kind=few_step.title,
            few=few_step.steps,
            low=few_step.guidance,
        )
        notes.append(note)
    if config.model.clip_skip > 1 and not family.clip_skip:
        words = _(
            "Clip skip is ignored: it is for Stable Diffusion 1.x, and this model is {family}.", family=family.title
        )
        notes.append(words)
    if config.model.guidance != 1 and not family.guided:
        notes.append(_("The guidance in training is ignored: {family} is told none.", family=family.title))
    return notes
