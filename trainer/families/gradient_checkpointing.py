"""Gradient checkpointing: compute some blocks of the denoiser twice to save memory."""

import itertools
from typing import Any, Literal

from trainer.families import Family

Recomputed = Literal["off", "large", "all"]  # as in the setting training.gradient_checkpointing


def recompute(family: Family, which: Recomputed) -> None:
    """Keep only the inputs of some blocks, and compute the rest again in the backward pass.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174 (section 4). The large blocks are the first half, without the
    innermost; at the largest sizes of the latents, they hold most of the activations.
    """
    denoiser: Any = family.denoiser
    denoiser.enable_gradient_checkpointing()
    blocks = family.blocks()
    large = {"off": 0, "large": max(1, (len(blocks) - 1) // 2), "all": len(blocks)}[which]
    for block in itertools.chain(*blocks[large:]):
        module: Any
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):  # a block's attention has a switch of its own
                module.gradient_checkpointing = False
    for encoder in family.text_encoders.values():
        _recompute_encoder(encoder, which)


def _recompute_encoder(encoder: Any, which: Recomputed) -> None:  # noqa: ANN401 - transformers is untyped
    # Newer versions of transformers have new names for both.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    disable = getattr(encoder, "activation_checkpointing_disable", None) or encoder.gradient_checkpointing_disable
    if which != "off":
        enable({"use_reentrant": False})
    elif any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules()):
        disable()
    encoder.train()  # transformers only does it in training; these encoders have no dropout
