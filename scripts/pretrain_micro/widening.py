"""Grow a base of twice the width from the weights of another, so that it need not be trained from nothing.

Each channel becomes two that do the same, and whatever reads them takes half of each: the wide base predicts what the
narrow one does (Net2WiderNet, Chen et al. 2016, https://arxiv.org/abs/1511.05641, section 3.1). Noise on the weights
then lets the two channels learn different things.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from trainer.base_models import MICRO_FOLDER

NOISE = 0.1  # of the standard deviation of each weight


def load_micro() -> nn.ModuleDict:
    """Load the UNet and the text encoder that come with Limner."""
    unet: nn.Module = UNet2DConditionModel.from_pretrained(MICRO_FOLDER / "unet").float()
    text_encoder: nn.Module = CLIPTextModel.from_pretrained(MICRO_FOLDER / "text_encoder").float()
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})


def widen(narrow: nn.ModuleDict, wide: nn.ModuleDict, *, noise: float, seed: int) -> None:
    """Fill the wide base with the weights of the narrow one and noise, relative to the deviation of each weight."""
    generator = torch.Generator().manual_seed(seed)
    weights = narrow.state_dict()
    unet: Any = narrow["unet"]
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            weight = weights[name]
            if weight.dim() > 1 and weight.shape[1] != parameter.shape[1]:
                weight = _read_twice(name, weight, unet.config)
            if weight.shape[0] != parameter.shape[0]:
                weight = _do_twice(name, weight, unet.config)
            parameter.copy_(weight)
            if parameter.dim() > 1:
                parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=generator))


def _read_twice(name: str, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Let a layer read twice as many channels, half of each; the second dimension of its weight doubles."""
    if name.endswith("time_embedding.linear_1.weight"):
        # The timestep's sines and cosines are not doubled: between each two there is a new one, which is not read.
        return torch.stack([weight, torch.zeros_like(weight)], dim=2).flatten(1)
    if name.endswith("embedding.weight"):  # of a token or a position: what is read is one row
        return _twice([weight], 1)
    if ".to_out." in name:
        return _twice(weight.chunk(config["attention_head_dim"], 1), 1) / 2
    return _twice(torch.split(weight, _parts(name, weight.shape[1], config["block_out_channels"]), 1), 1) / 2


def _do_twice(name: str, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Let a layer have two of each of its outputs; the first dimension of its weight or bias doubles."""
    if re.search(r"\.to_[qkv]\.", name):
        weight = _twice(weight.chunk(config["attention_head_dim"]), 0)
        return weight / 2**0.5 if ".to_q." in name else weight  # a head has twice the products, and divides by the root
    if ".ff.net.0.proj." in name:  # what is gated, and the gates
        return _twice(weight.chunk(2), 0)
    if ".norm1." in name and ".resnets." in name:
        return _twice(torch.split(weight, _parts(name, len(weight), config["block_out_channels"])), 0)
    return _twice([weight], 0)


def _parts(name: str, count: int, channels: Sequence[int]) -> list[int]:
    """Return how many of the channels that a layer of the UNet reads come from below, and how many from across."""
    block = re.match(r"unet\.up_blocks\.(\d+)\.resnets\.(\d+)\.(norm1|conv1|conv_shortcut)\.", name)
    if not block:
        return [count]
    level, place = int(block[1]), int(block[2])
    own = channels[::-1]
    below = own[level] if place else own[max(level - 1, 0)]
    return [below, count - below]


def _twice(parts: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat([copy for part in parts for copy in (part, part)], dim)
