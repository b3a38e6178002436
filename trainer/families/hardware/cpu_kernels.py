"""Compute attention and convolutions of the denoiser in ways that are fast on a CPU."""

from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from trainer.families.family import Family

FEW_TOKENS = 1024
CHANNELS_PER_POSITION = 5


def optimize_for_cpu(family: Family, side: int) -> None:
    """Let a CPU compute the denoiser in ways that are fast there; `side` is that of the images in pixels.

    Attention over few tokens as plain products: the fused kernel's backward pass is slow, and a step of Stable
    Diffusion 1.x at 256 pixels in bf16 takes 0.93 of the time, one of the built-in base 0.95. At 512 pixels, 4096
    tokens, they gain a tenth at best and take 3.4 GB more. In bf16, weights with the channels last (0.9 and 0.96 of the
    time at 256 and 512 pixels) and convolutions over few positions as products (then 0.75 and 0.95 of it).

    Weights packed once in oneDNN's order, for both passes, are left out: at 256 pixels a step would take 0.87 of the
    time on a Zen 4, for 2 GB more memory (in fp32 6 GB); at 512 pixels they gain little.
    """
    if family.device.type != "cpu":
        return
    denoiser: Any = family.denoiser
    if family.spec.unet and (side // family.pipeline().vae_scale_factor) ** 2 <= FEW_TOKENS:
        denoiser.set_attn_processor(AttnProcessor())
    if denoiser.dtype == torch.bfloat16:
        denoiser.to(memory_format=torch.channels_last)
        for module in denoiser.modules():
            if isinstance(module, nn.Conv2d) and _keeps_size(module):
                module.forward = MethodType(_convolve, module)  # type: ignore[method-assign]


def _keeps_size(module: nn.Conv2d) -> bool:
    return (module.kernel_size, module.stride, module.padding, module.groups) == ((3, 3), (1, 1), (1, 1), 1)


def _convolve(self: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Convolve [b, c, h, w] with a frozen 3 x 3 kernel: as one product, where its channels far outnumber positions.

    Most of the time then goes into reading the kernel, which the usual way copies into an order of its own each time,
    also in the backward pass.
    """
    batch, _, height, width = pixels.shape
    if batch * height * width * CHANNELS_PER_POSITION > self.out_channels:
        return functional.conv2d(pixels, self.weight, self.bias, padding=1)
    if not self.weight.is_contiguous():  # once: a product needs each kernel to be contiguous
        self.weight.data = self.weight.data.contiguous()
    taps = functional.unfold(pixels, 3, padding=1).transpose(0, 1).flatten(1)  # [c * 9, b * h * w]
    output = torch.mm(self.weight.flatten(1), taps).view(-1, batch, height, width).transpose(0, 1)
    return output if self.bias is None else output + self.bias[:, None, None]
