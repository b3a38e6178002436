"""Settings that nobody chose, and values in the user's words."""

from trainer.config import adjustments
from trainer.config.run_config import TrainConfig
from trainer.i18n import _

ABOUT_THE_RUN = ("task", "name", "dataset", "preset", "trigger", "record")  # what it is about, not how it trains
# Resolved when a run begins: by the base model, the machine, and the number of images.
RESOLVED = (
    "model.family",
    "model.revision",
    "model.prediction_type",
    "training.precision",
    "training.devices",
    "training.cards",
    "training.micro_batches",
    "training.gradient_checkpointing",
    "training.offload",
    "preview.prompts",
)
STEPS = "training.steps"


def resolved(config: TrainConfig, images: int) -> set[str]:
    """Return the paths of settings that nobody chose, given the number of images of the dataset, 0 = unknown."""
    open_steps = config.training.model_copy(update={"steps": 0})
    trained = images - adjustments.held_out_count(config, images)
    if images and adjustments.planned_steps(open_steps, trained, len(config.taught)) == config.training.steps:
        return {*RESOLVED, STEPS}  # they follow from the exposures
    return set(RESOLVED)


def shown(value: object) -> str:
    """Return a value in the user's words: choices as they are listed, on and off, short numbers."""
    match value:
        case bool():
            return _("on") if value else _("off")
        case str():
            return _(value)
        case tuple() | list():
            return ", ".join(map(shown, value))
        case _:
            return f"{value:g}"
