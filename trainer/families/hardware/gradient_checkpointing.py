"""Gradient checkpointing: compute some blocks of the denoiser twice instead of keeping their activations.

Chen et al. 2016, https://arxiv.org/abs/1604.06174 (section 4). What saves most for its time comes first. In Stable
Diffusion XL at 1024 pixels the feed-forward layers hold 3 of the 8 GB of activations for an eighth of the time, all
transformer blocks 6.4 GB for a third, and all other blocks together less than 1 GB. Then the weights of trained text
encoders, 1.3 GB of that model, wait in main memory while they are not needed; at last those of the denoiser's blocks.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from trainer.base_models.spec import Modules
from trainer.errors import UserError
from trainer.families.family import Family
from trainer.families.hardware import offload

Recomputed = Literal["off", "feed-forward", "half", "transformers", "all"]  # as in training.gradient_checkpointing
Waiting = Literal["off", "half", "all"]  # as in training.offload


@dataclass(frozen=True)
class _Blocks:
    """Blocks of a denoiser, in the order in which it holds them, and the feed-forward layers of transformer blocks."""

    feed_forwards: list[nn.Module]
    transformers: list[nn.Module]
    others: list[nn.Module]

    @classmethod
    def of(cls, denoiser: nn.Module, names: Modules) -> Self:
        """Find the blocks of a denoiser by the names of their lists."""
        transformers = offload.items(denoiser, names.blocks)
        feed_forwards = [
            module
            for path, module in denoiser.named_modules()
            for block, _, name in [path.rpartition(".")]
            if block in transformers and name in names.feed_forwards
        ]
        return cls(feed_forwards, [*transformers.values()], [*offload.items(denoiser, names.other_blocks).values()])

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks; a feed-forward layer is a part of one."""
        return self.transformers + self.others

    def chosen(self, which: Recomputed) -> list[nn.Module]:
        """Return the blocks to compute twice; with "half", of every other transformer block only those layers."""
        between = {module for block in self.transformers[1::2] for module in block.modules()}
        return {
            "off": [],
            "feed-forward": self.feed_forwards,
            "half": self.transformers[::2] + [layer for layer in self.feed_forwards if layer in between],
            "transformers": self.transformers,
            "all": self.blocks,
        }[which]

    def waiting(self, share: Waiting) -> list[nn.Module]:
        """Return the blocks whose weights wait in main memory; with "half", every other one."""
        return {"off": [], "half": self.transformers[::2] + self.others[::2], "all": self.blocks}[share]


def recompute(family: Family, which: Recomputed, waiting: Waiting = "off") -> None:
    """Keep only the inputs of some blocks, and compute the rest again in the backward pass.

    Args:
        family: the base model; its denoiser moves to its device, but for what waits.
        which: the blocks.
        waiting: the share of all blocks whose weights wait in main memory; in training, "all" are to be computed twice.

    Raises:
        RuntimeError: the device has too little memory for the rest.
        UserError: the model has none of the blocks that its family names.
    """
    blocks = _Blocks.of(family.denoiser, family.spec.modules)
    chosen, away = blocks.chosen(which), blocks.waiting(waiting)
    if which != "off" and not chosen:
        raise UserError(
            "The model has no blocks to compute twice under the names that {family} has for them.",
            "Set training.gradient_checkpointing to 'off', or use another base model.",
            family=family.spec.title,
        )
    if waiting != "off" and not away:
        raise UserError(
            "The model has no blocks whose weights could wait under the names that {family} has for them.",
            "Set training.offload to 'off', or use another base model.",
            family=family.spec.title,
        )
    offload.clear((*blocks.feed_forwards, *blocks.transformers, *blocks.others))
    _replace_forward(family.denoiser, chosen, away, family.device)
    for encoder in family.text_encoders.values():
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            layers = [module for module in encoder.modules() if isinstance(module, CLIPEncoderLayer)]
            offload.clear(layers)
            twice, away = layers if which != "off" else [], layers if which == "all" else []
            _replace_forward(encoder, twice, away, family.device)


def _replace_forward(
    model: nn.Module, recomputed: list[nn.Module], waiting: list[nn.Module], device: torch.device
) -> None:
    """Compute blocks of a model twice, and have the weights of some brought first."""
    offload.offload(model, waiting, device)
    for block in recomputed:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
