"""Differences of a config from its preset, and words for settings and their values."""

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config import adjustments
from trainer.config.loading import build
from trainer.config.run_config import TrainConfig
from trainer.i18n import _
from trainer.schema import Section

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


@dataclass(frozen=True)
class Difference:
    """A setting that is not that of the preset: its path, its title, its value, and the preset's."""

    path: str
    title: str
    value: object
    usual: object


def resolved(config: TrainConfig, images: int) -> set[str]:
    """Return the paths of settings that nobody chose, given the number of images of the dataset, 0 = unknown."""
    open_steps = config.training.model_copy(update={"steps": 0})
    trained = images - adjustments.held_out_count(config, images)
    if images and adjustments.planned_steps(open_steps, trained, len(config.taught)) == config.training.steps:
        return {*RESOLVED, STEPS}  # they follow from the exposures
    return set(RESOLVED)


def differences(config: TrainConfig, images: int = 0) -> list[Difference]:
    """Return the settings of a config that are not those of its preset and base model, in the order of the schema."""
    model = {name: getattr(config.model, name) for name in ("base", "family", "prediction_type")}
    usual_config = build({"name": "x", "dataset": "x", "preset": config.preset, "model": model})
    usual = {path: value for path, _title, value, _default in _settings(usual_config)}
    left_out = resolved(config, images)
    return [
        Difference(path, title, value, usual.get(path, default))
        for path, title, value, default in _settings(config)
        if path not in left_out and value != usual.get(path, default)
    ]


def _settings(config: TrainConfig) -> Iterator[tuple[str, str, object, object]]:
    """Yield (path, title, value, default) of each setting; the kind of a section has the section's title."""
    for name, info in TrainConfig.model_fields.items():
        value = getattr(config, name)
        if name in ABOUT_THE_RUN:
            continue
        if not isinstance(value, Section):
            yield name, _(info.title or name), value, info.default
            continue
        for inner, inner_info in type(value).model_fields.items():
            title = info.title if inner == "kind" else inner_info.title
            yield f"{name}.{inner}", _(title or inner), getattr(value, inner), inner_info.default


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
