"""The base model of a run: check that it can be used, and notes on it. Torch-free."""

from pathlib import PurePath

from trainer.base_models import adapter_location, detect, name_hints, vae
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.config import PreviewConfig, TrainConfig
from trainer.errors import UserError
from trainer.i18n import _

MOST_STEPS, MOST_GUIDANCE = 16, 2.0  # of previews with a few-step adapter, without a note


def check(config: TrainConfig) -> None:
    """Check that a run can start with its base model, and the other files that it names.

    Raises:
        UserError: one of them is not on this machine, or cannot be used; it says why.
    """
    model = config.model
    path, _commit = detect.locate(model.base, model.revision)
    base = detect.look(path)
    vae.find(path, base, model.vae)
    if config.preview.base:
        _check_preview_model(config.preview.base, base)
    for adapter in filter(None, (model.training_adapter, config.preview.adapter)):
        adapter_location.find(adapter)


def _check_preview_model(name: str, base: Base) -> None:
    other = detect.look(detect.locate(name)[0])
    if (other.family, other.size) != (base.family, base.size):
        raise UserError(
            "The preview model {name!r} is {other}, but the base model is {family}.",
            "Choose one of the same family and size.",
            name=PurePath(name).name,
            other=other.title,
            family=base.title,
        )


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
    notes += _find_few_step_note(config.preview)
    if config.model.clip_skip > 1 and not family.clip_skip:
        words = _(
            "Clip skip is ignored: it is for Stable Diffusion 1.x, and this model is {family}.", family=family.title
        )
        notes.append(words)
    if config.model.guidance != 1 and not family.guided:
        notes.append(_("The guidance in training is ignored: {family} is told none.", family=family.title))
    return notes


def _find_few_step_note(preview: PreviewConfig) -> list[str]:
    """Return a sentence if previews take many steps, or much guidance, with what is made for few; [] otherwise."""
    kind = name_hints.of_adapter(preview.adapter)
    if preview.base and not kind and (model := detect.glance(preview.base)):
        kind = model.few_step
    if kind is None or (preview.steps <= MOST_STEPS and preview.guidance <= MOST_GUIDANCE):
        return []
    note = _(
        "Previews take {steps} steps at guidance {guidance:g}, but {kind} is made for about {few} steps at {low:g}: "
        "set preview.steps and preview.guidance.",
        steps=preview.steps,
        guidance=preview.guidance,
        kind=kind.title,
        few=kind.steps,
        low=kind.guidance,
    )
    return [note]
