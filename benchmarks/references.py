"""Presets of large models beside the recipes that other programs document, for docs/defaults.md."""

from trainer import config as configs
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config.adjustments import planned_rank, planned_steps

IMAGES = 10
# Rate, batch and steps for ten images; the sum of the rates times alpha / rank; the text encoder's rate over the
# denoiser's. Of sd-scripts, OneTrainer, ai-toolkit and diffusers, where they document one.
OTHERS: dict[FamilyName, tuple[str, ...]] = {
    "sd15": (
        ".0001, 1, 1000 · .006 · .1",
        ".0003, 4, 250 · .005 · 1",
        "",
        ".0001, 1, 500 · .05 · off",
    ),
    "sdxl": (
        ".0001, 1, 1000 · .05 · .1",
        ".0003, 4, 250 · .005 · off",
        "",
        ".0001, 4, 500 · .05 · off",
    ),
    "sd3": (
        ".0001, 1, 1000 · .006 · 1",
        ".0003, 4, 250 · .005 · off",
        ".0001, 1, 2000 · .2 · off",
        ".0004, 4, 500 · .2 · off",
    ),
    "flux": (
        ".0001, 1, 1000 · .006 · 1",
        ".0003, 4, 250 · .005 · off",
        ".0001, 1, 2000 · .2 · off",
        "Prodigy, 4, 500 · off",
    ),
}


def table() -> str:
    """Format them as Markdown, ours from the presets for a character."""
    lines = ["| | ours | sd-scripts | OneTrainer | ai-toolkit | diffusers |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {FAMILIES[family].title} | {_ours(family)} | {' | '.join(cells)} |" for family, cells in OTHERS.items()
    ]
    return "\n".join(lines)


def _ours(family: FamilyName) -> str:
    base = {"family": family, "base": "owner/name"}
    config = configs.build({"name": "x", "dataset": "x", "trigger": "x", "model": base, "preset": "character"})
    training, rate, steps = config.training, config.optimizer.learning_rate, planned_steps(config.training, IMAGES)
    scale = config.adapter.alpha / planned_rank(config.adapter, IMAGES)
    moved = rate * scale * sum(config.schedule.factor(step, steps) for step in range(steps))
    encoder = f"{training.text_encoder_lr_factor:g}" if training.text_encoder else "off"
    batch = training.batch_size * training.gradient_accumulation
    return f"{rate:g}, {batch}, {steps} · {moved:.2f} · {encoder}".replace("0.", ".")
