"""Presets of large models beside the recipes that other programs document, for benchmarks/defaults.md."""

from dataclasses import dataclass

from trainer import config as configs
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config.adjustments import planned_rank, planned_steps

IMAGES = 10


@dataclass(frozen=True)
class Reference:
    """A recipe for ten images of a character; the text encoder's rate is its share of the denoiser's."""

    rates: list[float]  # of all steps; none if the optimizer finds them
    batch: int
    steps: int
    scale: float  # alpha / rank
    text_encoder: float = 0.0

    def cell(self) -> str:
        """Format it: rate, batch and steps, the sum of the rates times alpha / rank, the text encoder's rate."""
        moved = f" · {sum(self.rates) * self.scale:.1g}" if self.rates else ""
        rate = f"{max(self.rates):g}" if self.rates else "Prodigy"
        encoder = f"{self.text_encoder:g}" if self.text_encoder else "off"
        return f"{rate}, {self.batch}, {self.steps}{moved} · {encoder}".replace("0.", ".")


def constant(rate: float, batch: int, steps: int, scale: float, text_encoder: float = 0.0) -> Reference:
    """Return a recipe with a constant rate."""
    return Reference([rate] * steps, batch, steps, scale, text_encoder)


# Of sd-scripts, OneTrainer, ai-toolkit and diffusers, where they document one.
ONE_TRAINER, AI_TOOLKIT = constant(3e-4, 4, 250, 1 / 16), constant(1e-4, 1, 2000, 1)
FLOW = constant(1e-4, 1, 1000, 1 / 16, 1)  # of sd-scripts
OTHERS: dict[FamilyName, tuple[Reference | None, ...]] = {
    "sd15": (
        constant(1e-4, 1, 1000, 1 / 16, 0.1),
        constant(3e-4, 4, 250, 1 / 16, 1),
        None,
        constant(1e-4, 1, 500, 1),
    ),
    "sdxl": (constant(1e-4, 1, 1000, 0.5, 0.1), ONE_TRAINER, None, constant(1e-4, 4, 500, 1)),
    "sd3": (FLOW, ONE_TRAINER, AI_TOOLKIT, constant(4e-4, 4, 500, 1)),
    "flux": (FLOW, ONE_TRAINER, AI_TOOLKIT, Reference([], 4, 500, 1)),
    "chroma": (constant(1e-4, 1, 1000, 1 / 16), constant(3e-4, 2, 500, 1 / 16), AI_TOOLKIT, None),
    "flux2_klein": (None, constant(3e-5, 2, 500, 1 / 16), AI_TOOLKIT, constant(1e-4, 4, 500, 1)),
    "qwen_image": (None, constant(3e-4, 2, 500, 1 / 16), AI_TOOLKIT, constant(2e-4, 4, 500, 1)),
    "krea2": (None, constant(3e-4, 2, 500, 1 / 16), AI_TOOLKIT, constant(3e-4, 4, 500, 1)),
    "anima": (constant(1e-4, 1, 1000, 1 / 8), constant(3e-5, 2, 500, 1 / 16), AI_TOOLKIT, None),
    "z_image": (None, constant(3e-4, 2, 500, 1 / 16), None, constant(1e-4, 4, 500, 1)),
}


def table() -> str:
    """Format them as Markdown, ours from the presets for a character."""
    lines = ["| | ours | sd-scripts | OneTrainer | ai-toolkit | diffusers |", "|---|---|---|---|---|---|"]
    for family, others in OTHERS.items():
        cells = [reference.cell() if reference else "" for reference in (_ours(family), *others)]
        lines.append(f"| {FAMILIES[family].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ours(family: FamilyName) -> Reference:
    base = {"family": family, "base": "owner/name"}
    config = configs.build({"name": "x", "dataset": "x", "trigger": "x", "model": base, "preset": "character"})
    training, steps = config.training, planned_steps(config.training, IMAGES)
    return Reference(
        [config.optimizer.learning_rate * config.schedule.factor(step, steps) for step in range(steps)],
        training.batch_size * training.gradient_accumulation,
        steps,
        config.adapter.alpha / planned_rank(config.adapter, IMAGES),
        training.text_encoder_lr_factor * training.text_encoder,
    )
