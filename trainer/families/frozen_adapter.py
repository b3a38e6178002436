"""Frozen adapters: files whose effect is added to what the layers of a base model compute, and that are not trained.

The base's weights stay as they are: they may be quantized or wait in main memory, and without the adapter the base
computes what it did before, bit for bit. A layer's output W x becomes W x + B A x (Hu et al. 2021, section 4.1).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapter_files import low_rank, reader
from trainer.adapter_files.modules import Module, fits
from trainer.errors import UserError
from trainer.i18n import _


class Change(nn.Module):
    """Change of one layer. It moves to a device with the layer, and is not among the weights of the model."""

    down: Tensor
    up: Tensor

    def __init__(self, pair: low_rank.Pair, dtype: torch.dtype) -> None:
        super().__init__()
        module = pair.module(dtype=dtype)
        self.register_buffer("down", module.down, persistent=False)
        self.register_buffer("up", module.up, persistent=False)
        self.is_on = True

    def add_output(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the output of a layer [b, ..., out] or [b, out, h, w] with that of the change."""
        if not self.is_on:
            return output
        if isinstance(layer, nn.Conv2d):
            ranks = functional.conv2d(inputs[0], self.down, None, layer.stride, layer.padding, layer.dilation)
            return output + functional.conv2d(ranks, self.up)
        return output + functional.linear(functional.linear(inputs[0], self.down), self.up)


def add(layers: Mapping[str, nn.Module], path: Path, dtype: torch.dtype) -> None:
    """Add the change of an adapter file to layers of a denoiser, by their names in adapter files.

    A DoRA that is trained on a layer scales its inputs: there the change counts as a part of the base's weight.

    Raises:
        UserError: the file is missing, damaged, for another base model, or changes more than weights of the denoiser;
            or its change is not a low-rank one.
    """
    for name, module in reader.read(path).modules.items():
        layer = layers.get(name)
        if layer is None or not fits(module, _size(layer)):
            raise UserError(
                "The training adapter {file} does not fit the base model: it changes {layer}.",
                "Choose one that was made for this base model and changes its denoiser alone.",
                file=path.name,
                layer=name,
            )
        change = Change(_pair(layer, module, path.name), dtype)
        layer.add_module("frozen_change", change.to(next(layer.parameters()).device))
        layer.register_forward_hook(change.add_output)


def _size(layer: nn.Module) -> tuple[int, int]:
    """Return the size [out, in * kh * kw] of a layer's weight, which is packed if it is quantized."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight = layer.get_parameter("weight")
    return len(weight), weight[0].numel()


def _pair(layer: nn.Module, module: Module, file: str) -> low_rank.Pair:
    kernel = layer.weight.shape[1:] if isinstance(layer, nn.Conv2d) else _size(layer)[1:]
    try:
        return low_rank.factors(module, kernel)
    except UserError as error:
        message = _("The training adapter {file} cannot be used: {reason}", file=file, reason=error.message)
        raise UserError(message, error.remedy) from error


@contextmanager
def off(denoiser: nn.Module) -> Iterator[None]:
    """Compute without the frozen adapter inside the `with`, as an image is generated."""
    changes = [module for module in denoiser.modules() if isinstance(module, Change)]
    for change in changes:
        change.is_on = False
    try:
        yield
    finally:
        for change in changes:
            change.is_on = True
