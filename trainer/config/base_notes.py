"""The base model of a run: check that it can be used, and notes on it. Torch-free."""

from pathlib import PurePath

from trainer.base_models import adapter_location, detect, vae
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.config import ModelConfig, TrainConfig
from trainer.i18n import _


def check(model: ModelConfig) -> None:
    """Check that a run can start with a base model, its VAE and its training adapter.

    Raises:
        UserError: one of them is not on this machine, or cannot be used; it says why.
    """
    path, _commit = detect.locate(model.base, model.revision)
    vae.find(path, detect.look(path), model.vae)
    if model.training_adapter:
        adapter_location.find(model.training_adapter)


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
    if config.model.clip_skip > 1 and not family.clip_skip:
        words = _(
            "Clip skip is ignored: it is for Stable Diffusion 1.x, and this model is {family}.", family=family.title
        )
        notes.append(words)
    if config.model.guidance != 1 and not family.guided:
        notes.append(_("The guidance in training is ignored: {family} is told none.", family=family.title))
    return notes
