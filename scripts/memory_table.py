"""Table of docs/small-cards.md: how each NVIDIA card trains each base model, from the presets as they are."""

from trainer import config
from trainer.base_models.layer_shapes import MODELS
from trainer.base_models.registry import FAMILIES
from trainer.machine import card_memory
from trainer.machine.card_memory import BESIDE, Step

CARDS = (4, 6, 8, 10, 12, 16, 24, 32)  # GB
SIDES = (512, 768, 1024)  # pixels


def table() -> str:
    """Return the fastest way in which a step with one image fits on each card, for each base model and resolution."""
    heads = ["base model", "pixels", *(f"{memory} GB" for memory in CARDS)]
    rows = [[title, str(side), *_ways(model, side)] for model, title in _titles().items() for side in SIDES]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _titles() -> dict[str, str]:
    """Return the titles of all models whose memory is known, by their names in `MODELS`."""
    titles = {name: spec.title for name, spec in FAMILIES.items()}
    titles |= {size.configs: size.title for spec in FAMILIES.values() for size in spec.sizes}
    return {model: title for model, title in titles.items() if card_memory.figures(model)}


def _ways(model: str, side: int) -> list[str]:
    training = {"resolution": side, "batch_size": 1}
    about = {"name": "x", "dataset": "x", "preset": "character", "model": {"base": "x", "family": MODELS[model][0]}}
    settings = config.build({**about, "training": training})
    return [_way(card_memory.of_step(settings, model, memory - BESIDE)) for memory in CARDS]


def _way(step: Step) -> str:
    if not step.fits:
        return "no"
    if step.offload != "off":
        return f"offload {step.offload}"
    return step.checkpointing
