"""Gentler settings for pictures without captions that the built-in base micro cannot draw. Torch-free.

Without its trigger such a picture is described by no words at all. To preserve it so, as the presets do, leaves the
trigger alone to learn, and guidance, which leads away from no words, then leads beyond what was taught, into noise.
"""

from collections.abc import Iterable

from trainer import config as configs
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.data.captions import without_trigger
from trainer.i18n import say

OTHERS = 1.0  # of what is preserved: only what the base draws from words


def gentler(config: TrainConfig, captions: Iterable[str], *, beyond: bool) -> TrainConfig:
    """The settings for pictures with these captions: on micro, nothing without words is preserved if most have none.

    What differs from the preset was set by a person, and stays.

    Args:
        config: the settings as they were asked for.
        captions: of all pictures, with or without the trigger word.
        beyond: whether micro cannot draw these pictures; those that it can draw are learned well by the preset, which
            keeps the trigger a switch.
    """
    usual = configs.preset(config.preset, MICRO).get("preservation", {})
    kept = config.preservation
    is_usual = kept.share and kept.prompts and kept.others == usual.get("others")
    if config.model.base != MICRO or not beyond or not is_usual or not are_missing(captions, config.trigger):
        return config
    return config.model_copy(update={"preservation": kept.model_copy(update={"others": OTHERS})})


def are_missing(captions: Iterable[str], trigger: str) -> bool:
    """Tell whether most captions consist of nothing but the trigger word."""
    silent = [not without_trigger(caption, trigger) for caption in captions]
    return 2 * sum(silent) > len(silent)


def note() -> str:
    """Return the sentence that explains the gentler settings."""
    return say(
        "Micro cannot draw these pictures and most have no caption, so they are taught more gently (Other prompts, "
        "under Preservation, is 1): a weak likeness rather than noise. Captions make the result better."
    )
