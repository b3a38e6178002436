"""Frozen adapters: files whose effect is added to what the layers of a base model compute, and that are not trained.

The base's weights stay as they are: they may be quantized or wait in main memory, and without the adapter the base
computes what it did before, bit for bit. A layer's output W x becomes W x + B A x (Hu et al. 2021, section 4.1).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapter_files import low_rank
from trainer.adapter_files.modules import Module, fits
from trainer.adapter_files.reader import AdapterFile
from trainer.errors import UserError
from trainer.i18n import _

Layer = nn.Linear | nn.Conv2d


class Change(nn.Module):
    """Change of one layer. It moves to a device with the layer, and is not among the weights of the model."""

    down: Tensor
    up: Tensor

    def __init__(self, pair: low_rank.Pair, dtype: torch.dtype, strength: float) -> None:
        super().__init__()
        module = pair.module(dtype=dtype)
        self.register_buffer("down", module.down, persistent=False)
        self.register_buffer("up", module.up, persistent=False)
        self.strength = strength

    def add_output(self, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the output of a layer [b, ..., out] or [b, out, h, w] with that of the change."""
        if not self.strength:
            return output
        if isinstance(layer, nn.Conv2d):
            ranks = functional.conv2d(inputs[0], self.down, None, layer.stride, layer.padding, layer.dilation)
            return output + self.strength * functional.conv2d(ranks, self.up)
        return output + self.strength * functional.linear(functional.linear(inputs[0], self.down), self.up)


@dataclass(frozen=True)
class FrozenAdapter:
    """An adapter file that fits a base model: the changes of its layers, which are in main memory at first."""

    changes: tuple[tuple[Layer, Change], ...]

    def set_strength(self, strength: float) -> None:
        """Scale its effect; 1 = as it was trained."""
        for _layer, change in self.changes:
            change.strength = strength

    def add(self) -> None:
        """Add it for good, but for `off`: it belongs to the model from now on and moves to a device with it."""
        for layer, change in self.changes:
            layer.add_module("frozen_change", change.to(next(layer.parameters()).device))
            layer.register_forward_hook(change.add_output)

    @contextmanager
    def added(self, device: torch.device) -> Iterator[None]:
        """Add it inside the `with`, where it is on a device; afterwards it is in main memory again."""
        hooks = []
        try:
            for layer, change in self.changes:
                change.to(device)
                hooks.append(layer.register_forward_hook(change.add_output))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for _layer, change in self.changes:
                change.to("cpu")


def fit(
    layers: Mapping[str, Layer], file: AdapterFile, title: str, dtype: torch.dtype, strength: float = 1.0
) -> FrozenAdapter:
    """Fit an adapter file to the layers of a denoiser.

    A DoRA that is trained on a layer scales its inputs: there the change counts as a part of the base's weight.

    Args:
        layers: by their names in adapter files.
        file: the adapter; LoRA, LoHa, LoKr or a whole change of a weight.
        title: what people call it.
        dtype: precision to compute its effect in.
        strength: factor of that.

    Raises:
        UserError: it is for another base model, or changes more than weights of the denoiser, or not by a low rank.
    """
    changes = []
    for name, module in file.modules.items():
        layer = layers.get(name)
        if layer is None or not fits(module, size(layer)):
            raise UserError(
                "The adapter {file} does not fit the base model: it changes {layer}.",
                "Choose one that was made for this base model and changes weights of its denoiser alone.",
                file=title,
                layer=name,
            )
        changes.append((layer, Change(_pair(layer, module, title), dtype, strength)))
    return FrozenAdapter(tuple(changes))


def size(layer: Layer) -> tuple[int, int]:
    """Return the size [out, in * kh * kw] of a layer's weight, which is packed if it is quantized."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return len(layer.weight), layer.weight[0].numel()


def _pair(layer: Layer, module: Module, title: str) -> low_rank.Pair:
    kernel = layer.weight.shape[1:] if isinstance(layer, nn.Conv2d) else size(layer)[1:]
    try:
        return low_rank.factors(module, kernel)
    except UserError as error:
        message = _("The adapter {file} cannot be used: {reason}", file=title, reason=error.message)
        raise UserError(message, error.remedy) from error


@contextmanager
def off(denoiser: nn.Module) -> Iterator[None]:
    """Compute without what belongs to a denoiser inside the `with`, as images are generated."""
    changes = [(module, module.strength) for module in denoiser.modules() if isinstance(module, Change)]
    for change, _strength in changes:
        change.strength = 0.0
    try:
        yield
    finally:
        for change, strength in changes:
            change.strength = strength
