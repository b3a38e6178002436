"""Notes on the base model of a run, and gentler settings for what the built-in one cannot draw. Torch-free.

Without its trigger an image without a caption has an empty one. Preserving it, as the presets do, leaves only the
trigger to learn; guidance, which leads away from the empty caption, then leads beyond what was taught, into noise.
"""

from collections.abc import Iterable

from trainer import config as configs
from trainer.base_models import MICRO
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.data.captions import without_trigger
from trainer.i18n import _

OTHERS = 1.0  # share of other prompts in what is preserved: only images that the base model generates from prompts


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
    return notes


def adjust_uncaptioned(config: TrainConfig, captions: Iterable[str], *, beyond: bool) -> TrainConfig:
    """Return the settings for images with these captions: on micro, no empty caption is preserved if most are empty.

    Settings that differ from the preset were chosen by the user, and stay. With a class word no caption is empty.

    Args:
        config: the settings as requested.
        captions: of all images, with or without the trigger word.
        beyond: whether micro cannot draw these images; those that it can draw are learned well with the preset, which
            keeps the trigger a switch.
    """
    usual = configs.preset(config.preset, MICRO).get("preservation", {})
    preservation = config.preservation
    is_usual = (
        preservation.share and preservation.prompts and preservation.generated_share == usual.get("generated_share")
    )
    if config.model.base != MICRO or not beyond or not is_usual or config.class_word:
        return config
    if not are_missing(captions, config.trigger):
        return config
    return config.model_copy(update={"preservation": preservation.model_copy(update={"generated_share": OTHERS})})


def are_missing(captions: Iterable[str], trigger: str) -> bool:
    """Return True if most captions consist of nothing but the trigger word."""
    empty = [not without_trigger(caption, trigger) for caption in captions]
    return 2 * sum(empty) > len(empty)


def note_uncaptioned() -> str:
    """Return the sentence that explains the gentler settings."""
    return _(
        "Micro cannot draw these images and most have no caption, so they are taught more gently (Other prompts, under "
        "Preservation, is 1), for a weak likeness rather than noise. Captions make the result better."
    )
