"""Gradient checkpointing: compute some blocks of the denoiser twice instead of keeping their activations.

Chen et al. 2016, https://arxiv.org/abs/1604.06174 (section 4). What saves most for its time comes first. In Stable
Diffusion XL at 1024 pixels the feed-forward layers hold 3 of the 8 GB of activations for an eighth of the time, all
transformer blocks 6.4 GB for a third, and all other blocks together less than 1 GB. In the last resort the weights of
trained text encoders, 1.3 GB of that model, wait in main memory while they are not needed.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from trainer.families.family import Family

_TRANSFORMER_BLOCK = re.compile(r"transformer_blocks\.\d+$")  # at the end of its path
Recomputed = Literal["off", "feed-forward", "half", "transformers", "all"]  # as in training.gradient_checkpointing


@dataclass(frozen=True)
class _Blocks:
    """Blocks of a denoiser, in the order in which it holds them; each transformer block has a feed-forward layer."""

    feed_forwards: list[nn.Module]
    transformers: list[nn.Module]
    others: list[nn.Module]

    def chosen(self, which: Recomputed) -> list[nn.Module]:
        """Return the blocks to compute twice; with "half", of every other transformer block only a layer."""
        return {
            "off": [],
            "feed-forward": self.feed_forwards,
            "half": self.transformers[::2] + self.feed_forwards[1::2],
            "transformers": self.transformers,
            "all": self.transformers + self.others,
        }[which]


def recompute(family: Family, which: Recomputed) -> None:
    """Keep only the inputs of some blocks, and compute the rest again in the backward pass."""
    modules = list(family.denoiser.modules())
    blocks = _Blocks(
        [module for module in modules if isinstance(module, FeedForward)],
        [module for path, module in family.denoiser.named_modules() if _TRANSFORMER_BLOCK.search(path)],
        [module for module in modules if isinstance(module, ResnetBlock2D)],
    )
    for module in (*blocks.feed_forwards, *blocks.transformers, *blocks.others):
        vars(module).pop("forward", None)
    for module in blocks.chosen(which):
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    for encoder in family.text_encoders.values():
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            _recompute_encoder(encoder, which, family.device)


def _recompute_encoder(encoder: nn.Module, which: Recomputed, device: torch.device) -> None:
    """Compute the layers of a trained text encoder twice; with "all" their weights are on the device only meanwhile."""
    layers = [module for module in encoder.modules() if isinstance(module, CLIPEncoderLayer)]
    for layer in layers:
        vars(layer).pop("forward", None)
    encoder.to(device)  # what has waited in main memory
    if which == "off":
        return
    streamed = _Streamed(layers, device) if which == "all" else None
    for layer in layers:
        forward = streamed.forward(layer) if streamed else layer.forward
        layer.forward = partial(checkpoint, forward, use_reentrant=False)


class _Streamed:
    """Frozen weights of layers that wait in main memory; those of one layer at a time are on the device."""

    def __init__(self, layers: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        self._waiting = {layer: [*_frozen(layer)] for layer in layers}
        self._here: nn.Module | None = None
        for layer in layers:
            self._send_away(layer)

    def forward(self, layer: nn.Module) -> Callable[..., Any]:
        """Return the forward function of a layer, which has its weights brought first."""
        compute = layer.forward

        def bring_and_compute(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as in torch
            if self._here is not layer:
                if self._here:
                    self._send_away(self._here)
                self._here = layer
                for module, name, weight in self._waiting[layer]:
                    module._parameters[name] = nn.Parameter(weight.to(self._device), requires_grad=False)
            return compute(*arguments, **options)

        return bring_and_compute

    def _send_away(self, layer: nn.Module) -> None:
        for module, name, weight in self._waiting[layer]:
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)


def _frozen(layer: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the frozen weights of a layer in main memory, each with its owner and its name there."""
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                yield module, name, parameter.detach().to("cpu")
