"""Gradient checkpointing: which blocks of the denoiser are computed twice to save memory."""

from typing import Any, Literal

from trainer.families import Family

Recomputed = Literal["off", "large", "all"]  # as in the setting training.gradient_checkpointing


def recompute(family: Family, which: Recomputed) -> None:
    """Gradient checkpointing: of some blocks keep the inputs only, and compute the rest again when needed.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174 (section 4). The large blocks are those at the two largest sizes
    of the latents, which hold most of what is kept; a model of two sizes has one such.
    """
    host: Any = family.denoiser
    host.enable_gradient_checkpointing()
    sizes = len(host.down_blocks)
    large = {"off": 0, "large": max(1, sizes // 2), "all": sizes}[which]
    kept = [*host.down_blocks[large:], *host.up_blocks[: sizes - large], *([] if which == "all" else [host.mid_block])]
    for module in (one for block in kept for one in block.modules()):
        if hasattr(module, "gradient_checkpointing"):  # a block's attention has a switch of its own
            module.gradient_checkpointing = False
    for encoder in family.text_encoders.values():
        part: Any = encoder
        # Both are in transformers under a new name, and under the old one alone in older versions.
        enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
        disable = getattr(part, "activation_checkpointing_disable", None) or part.gradient_checkpointing_disable
        if which != "off":
            enable({"use_reentrant": False})
        elif any(getattr(module, "gradient_checkpointing", False) for module in part.modules()):
            disable()
        part.train()  # transformers only does it in training; these encoders have no dropout
