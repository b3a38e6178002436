"""The memory of a step on an NVIDIA card before any was taken, and the settings with which it would fit. Torch-free.

It follows from figures of a simulated card (`FamilySpec.step_memory`): weights stay as they are, and what is kept for
the backward pass grows with the images computed at once and their pixels.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from trainer.base_models import MICRO, layer_shapes, transformer_names
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.config.adapter import Lora
from trainer.i18n import _
from trainer.machine import nvidia, pace

# `training.gradient_checkpointing` and `training.offload` of the figures, from the fastest way to the smallest.
WAYS = (
    *((way, "off") for way in ("off", "feed-forward", "half", "transformers", "all")),
    ("all", "half"),
    ("all", "all"),
)
BESIDE = 1.0  # GiB that CUDA takes, and that stays free for the screen
BYTES = {"full": 2.0, "int8": 1.0, "nf4": 0.5}  # of a weight
# Share of the weights, by what is offloaded: a sixth stays or is being copied, as XL's figures at two sizes have it.
ON_CARD = {"off": 1.0, "half": 0.58, "all": 0.16}
TRIED_SIDES = (1024, 768, 512)  # pixels
# What training the text encoders takes, as a share of their weights: with them on the card, or there only when needed.
TRAINED, WAITING = 1.5, 0.35


@dataclass(frozen=True)
class Step:
    """Memory of a step in GiB, in the fastest of the ways left open that fits, else in the smallest."""

    need: float
    room: float
    checkpointing: str
    offload: str

    @property
    def fits(self) -> bool:
        """True if the card has that much."""
        return self.need <= self.room


def of_step(config: TrainConfig, model: str, room: float) -> Step:
    """Return the memory of a step with so much room on the card."""
    training, steps = config.training, []
    images = math.ceil(training.batch_size / (training.micro_batches or training.batch_size))
    for way, offload in WAYS:
        if training.gradient_checkpointing in ("auto", way) and training.offload in ("auto", offload):
            need = _need(config, model, images, (way, offload))
            steps.append(Step(need, room, way, offload))
    return next((step for step in steps if step.fits), steps[-1])


def describe(config: TrainConfig) -> str:
    """Return a sentence on the memory of a step and, if it does not fit, on the setting that helps; "" if unknown."""
    room = _largest() - BESIDE
    if room <= 0 or not (model := pace.model_of(config)) or not figures(model):
        return ""
    step = of_step(config, model, room)
    sizes = {"need": step.need, "room": step.room}
    if step.fits:
        text = _("A step needs about {need:.1f} of the {room:.1f} GB that the card has for it, as computed", **sizes)
        if (step.checkpointing, step.offload) == WAYS[0]:
            return f"{text}."
        saved = _(
            "with gradient checkpointing {way} and offload {offload}", way=step.checkpointing, offload=step.offload
        )
        return f"{text}, {saved}."
    problem = _("A step needs about {need:.1f} GB, as computed, but the card has {room:.1f} GB for it.", **sizes)
    for setting, value in _remedies(config):
        changed = of_step(_with(config, setting, value), model, room)
        if changed.fits:
            return f"{problem} " + _(
                "Set {title} ({setting}) to {value}: it needs about {need:.1f} GB then.",
                title=_title(config, setting),
                setting=setting,
                value=value,
                need=changed.need,
            )
    return f"{problem} " + _("No single setting is enough: choose a smaller base model or another card.")


def _remedies(config: TrainConfig) -> Iterator[tuple[str, object]]:
    """Yield settings with their values, from those that only cost time to those that change what is learned."""
    yield "training.micro_batches", 0
    yield "training.gradient_checkpointing", "auto"
    yield "training.offload", "auto"
    if isinstance(config.adapter, Lora) and not config.adapter.dora:  # the others need whole weights
        yield "model.weights", "nf4"
    for side in TRIED_SIDES:
        if side < config.training.resolution:
            yield "training.resolution", side
    if config.training.text_encoder:
        yield "training.text_encoder", False


def _title(config: TrainConfig, setting: str) -> str:
    section, name = setting.split(".")
    return _(str(type(getattr(config, section)).model_fields[name].title))


def _with(config: TrainConfig, setting: str, value: object) -> TrainConfig:
    section, name = setting.split(".")
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})


def _need(config: TrainConfig, model: str, images: int, way: tuple[str, str]) -> float:
    """Return the GiB of a step with so many images at once."""
    spec, on_card = FAMILIES[layer_shapes.MODELS[model][0]], ON_CARD[way[1]]
    weights = on_card * _weights(model, "full")
    pixels = (max(config.training.resolutions) / next(iter(spec.variants.values()))) ** 2
    need = (
        on_card * _weights(model, config.model.weights)
        + max(0.0, figures(model)[WAYS.index(way)] - weights) * images * pixels
    )
    if config.training.text_encoder:
        need += {"all": WAITING}.get(way[0], TRAINED) * _text_encoders(model)
    return need


def figures(model: str) -> tuple[float, ...]:
    """Return the GiB of one image in each of the ways; () if nothing is known."""
    spec = FAMILIES[layer_shapes.MODELS[model][0]]
    sizes = {size.configs: size.step_memory for size in spec.sizes} | {MICRO: ()}
    return sizes.get(model, spec.step_memory)


@cache
def _text_encoders(model: str) -> float:
    """Return the GiB of the weights of the text encoders, two bytes each."""
    shapes = layer_shapes.known(model).items()
    return sum(2 * math.prod(shape) for name, shape in shapes if name.startswith("text_encoder")) / 2**30


@cache
def _weights(model: str, kept: str) -> float:
    """Return the GiB of a denoiser's weights: those in its quantized modules take fewer bits, the rest two bytes."""
    family = layer_shapes.MODELS[model][0]
    spec, total = FAMILIES[family], 0.0
    for name, shape in layer_shapes.known(model).items():
        component, _colon, path = name.partition(":")
        if component == spec.denoiser and not transformer_names.parts(path, family):
            is_quantized = any(f"{module}." in path for module in spec.modules.quantized)
            total += math.prod(shape) * BYTES[kept if is_quantized else "full"]
    return total / 2**30


def _largest() -> float:
    """Return the GiB of the largest card, 0 if torch uses none."""
    if os.environ.get("LIMNER_DEVICE") == "cpu" or not nvidia.built_for():
        return 0.0
    return max((card.memory for card in nvidia.installed()), default=0.0) / 2**30
