"""Recipes that the quality benchmark compares, as settings of this trainer: presets, other trainers', ablations.

All of them run in our trainer, so a figure is about a recipe, not about a program. `differs` lists what our trainer or
micro cannot do: there is one resolution, and 8-bit optimizers need a GPU.
"""

import json
import math
import tomllib
from dataclasses import dataclass, field
from typing import Any

from benchmarks.subjects import Subject
from trainer import config as configs
from trainer.base_models import MICRO
from trainer.config import TrainConfig

WIDTH = 5.0
"""Adam's useful rate goes about as one over the width of the layers, and micro's are some five times narrower than
those of Stable Diffusion, for which the others document their rates."""
TUNED = (WIDTH / 3, WIDTH, WIDTH * 3)


@dataclass(frozen=True)
class Recipe:
    """Settings by their path, their source, and how they differ from it.

    They override the defaults, or the preset if `preset` is true. `per_picture` are exposures of each image, `warmup`
    steps; 0 = as the settings say.
    """

    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    preset: bool = False
    per_picture: int = 0
    warmup: int = 0
    differs: str = ""


PLAIN: dict[str, Any] = {
    "adapter.kind": "lora", "optimizer.kind": "adamw", "optimizer.beta2": 0.999, "optimizer.weight_decay": 0.01,
    "schedule.kind": "constant", "schedule.warmup": 0.0, "training.max_grad_norm": 1.0,
}  # fmt: skip
"""Common to the other trainers: LoRA, torch's AdamW, a constant learning rate."""


def _plain() -> dict[str, Any]:
    sections = tomllib.loads((configs.PRESETS / "plain.toml").read_text(encoding="utf-8"))
    return {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}


# The file of all families, as documented: micro's own has another rate, and here `rate` multiplies it.
KOHYA = {
    **PLAIN,
    **_plain(),
    "adapter.rank": 32,
    "adapter.alpha": 16.0,
}

OURS = "ours"
PEERS = {
    "kohya": Recipe(
        "kohya-ss/sd-scripts, docs/sdxl_train_network.md: network_dim 32, network_alpha 16, 1e-4, batch 1, 10 epochs; "
        "docs/train_network.md: the text encoder at the same rate",
        KOHYA, per_picture=100,
        differs="AdamW for AdamW8bit, without the layers around the transformer blocks; that each picture comes 10 "
        "times in an epoch is custom, not in the document",
    ),
    "OneTrainer": Recipe(
        "Nerogar/OneTrainer, training_presets/SD1.5/ and TrainConfig.py: rank 16, alpha 1, attn-mlp, 3e-4 for both "
        "parts, 200 steps of warm-up, batch 4, 100 epochs",
        {
            **PLAIN, "adapter.rank": 16, "adapter.alpha": 1.0, "adapter.targets": "attention+ff",
            "optimizer.learning_rate": 3e-4, "training.batch_size": 4, "training.text_encoder": True,
            "training.text_encoder_lr_factor": 1.0,
        },
        per_picture=100, warmup=200, differs="of the text encoder only the attention",
    ),
    "ai-toolkit": Recipe(
        "ostris/ai-toolkit, its page's jobConfig.ts: linear 32/32, conv 16/16, 1e-4, weight decay 1e-4, "
        "batch 1, 3000 steps, caption dropout 0.05, no text encoder",
        {
            **PLAIN, "adapter.rank": 32, "adapter.alpha": 32.0, "adapter.targets": "conv",
            "optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 1e-4, "training.batch_size": 1,
            "training.steps": 3000, "captions.dropout": 0.05,
        },
        differs="AdamW for AdamW8bit, rank 32 for convolutions too, one resolution of three, "
        "noise levels drawn all alike",
    ),
    "diffusers": Recipe(
        "huggingface/diffusers, examples/dreambooth/README.md on train_dreambooth_lora.py: rank 4, attention, 1e-4, "
        "constant, batch 1, 500 steps, no text encoder",
        {
            **PLAIN, "adapter.rank": 4, "adapter.alpha": 4.0, "adapter.targets": "attention",
            "optimizer.learning_rate": 1e-4, "training.batch_size": 1, "training.steps": 500,
        },
        differs="Kaiming start for the gaussian one; captions for the one prompt of all pictures",
    ),
}  # fmt: skip
GUARDED = {
    "kohya + preservation": Recipe(
        "kohya's recipe with differential output preservation of every picture, kohya-ss/sd-scripts#1710",
        {**KOHYA, "preservation.share": 1.0, "preservation.weight": 1.0, "preservation.generated_share": 0.0},
        per_picture=100,
        differs="AdamW for AdamW8bit",
    )
}  # fmt: skip
WITHOUT = {
    "preservation": {"preservation.share": 0.0},
    "preservation of its own pictures": {"preservation.generated_share": 1.0},
    "a least noise for its own pictures": {"preservation.noise_from": 0.0},
    "the text encoder": {"training.text_encoder": False},
    "captions of the trigger alone": {"captions.trigger_only": 0.0},
    "caption dropout": {"captions.dropout": 0.0},
    "convolutions": {"adapter.targets": "attention+ff"},
    "cosine": {"schedule.kind": "constant"},
    "layers other than attention": {"adapter.targets": "attention"},
    "a large batch": {"training.batch_size": 4},
    "a short memory of squares": {"optimizer.beta2": 0.999},
    "clipping": {"training.max_grad_norm": 0.0},
}
WITH = {
    "weight decay": {"optimizer.weight_decay": 0.001},
    "twice the preservation": {"preservation.share": 0.5},
    "rank 4": {"adapter.rank": 4},
    "captions of the trigger alone": {"captions.trigger_only": 0.5},
    "min-SNR": {"objective.weighting": "min-snr"},
    "averaging": {"training.ema_decay": 0.98},
}
ABLATIONS = {
    **{
        f"ours without {name}": Recipe(f"ours, {settings}", settings, preset=True) for name, settings in WITHOUT.items()
    },
    **{f"ours with {name}": Recipe(f"ours, {settings}", settings, preset=True) for name, settings in WITH.items()},
}
RECIPES = {OURS: Recipe("trainer/config/presets/micro-*.toml", preset=True), **PEERS, **GUARDED, **ABLATIONS}


def settings(recipe: Recipe, subject: Subject, pictures: int, *, rate: float, seed: int) -> TrainConfig:
    """Return the settings of a run of a recipe, with its learning rate times `rate`."""
    own: dict[str, Any] = {
        "name": subject.name, "dataset": str(subject.dataset), "trigger": subject.trigger, "preset": subject.preset,
        "seed": seed, "model.base": MICRO, "training.resolution": configs.micro_resolution(), **recipe.settings,
    }  # fmt: skip
    config = _built(own, preset=recipe.preset)
    steps = config.training.steps
    if recipe.per_picture:
        steps = math.ceil(recipe.per_picture * pictures / config.training.batch_size)
        own |= {"training.steps": steps}
    if recipe.warmup:
        own |= {"schedule.warmup": min(1.0, recipe.warmup / steps)}
    own |= {"optimizer.learning_rate": config.optimizer.learning_rate * rate}
    return _built(own, preset=recipe.preset)


def _built(own: dict[str, Any], *, preset: bool) -> TrainConfig:
    # JSON's plain values are TOML's too.
    data = configs.override({}, [f"{path}={json.dumps(value)}" for path, value in own.items()])
    return configs.build(data) if preset else configs.check(TrainConfig, data)


def changes(recipe: Recipe, subject: Subject) -> bool:
    """Tell whether an ablation changes anything in the preset of this subject."""
    return settings(recipe, subject, 1, rate=1.0, seed=0) != settings(RECIPES[OURS], subject, 1, rate=1.0, seed=0)
