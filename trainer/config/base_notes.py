"""Notes on the base model of a run. Torch-free."""

from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.i18n import _


def find(config: TrainConfig, base: Base) -> list[str]:
    """List the notes on a run's base model, each a sentence or two."""
    notes = []
    if base.few_step:
        note = _(
            "This model is distilled to generate in few steps ({kind}), and training on it costs some of that ability. "
            "Rather train on the model that it was made from: the adapter works with both.",
            kind=base.few_step.title,
        )
        notes.append(note)
    if config.model.clip_skip > 1 and not FAMILIES[base.family].clip_skip:
        family = FAMILIES[base.family].title
        notes.append(
            _("Clip skip is ignored: it is for Stable Diffusion 1.x, and this model is {family}.", family=family)
        )
    if config.model.guidance != 1 and not FAMILIES[base.family].guided:
        family = FAMILIES[base.family].title
        notes.append(_("The guidance in training is ignored: {family} is told none.", family=family))
    return notes
