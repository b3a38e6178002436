"""Quantize frozen weights, for GPUs that are too small for the base model in 16 bits.

8 bits with a scale for each row: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339 (section 2.1). 4 bits in blocks
of 64 with the quantiles of a normal distribution as levels: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314
(section 3). The adapter is trained in full precision, as there.
"""

import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.devices import Untyped
from trainer.errors import UserError

Bits = Literal["full", "int8", "nf4"]
_MODULATION = re.compile(r"\.norm|adaLN_")
ROWS, COLUMNS = 32, 64  # block size of the library's kernels; it divides all layers of real models


def quantize(model: nn.Module, bits: Bits, lists: Sequence[str], title: str) -> None:
    """Quantize the linear layers in a model's blocks; convolutions and modulations stay as they are.

    Args:
        model: a denoiser, or a large text encoder.
        bits: what its weights are stored in.
        lists: names of the lists of its blocks.
        title: name of its family, for people.

    Raises:
        UserError: bitsandbytes is not installed, or the model has no layer of a fitting size in such blocks.
    """
    if bits == "full":
        return
    try:
        library: Any = importlib.import_module("bitsandbytes.nn")
    except ImportError:
        raise UserError(
            "Weights in {bits} need a package that is not installed.",
            "Install it with: pip install 'limner[bitsandbytes]', or set model.weights to 'full'.",
            bits=bits,
        ) from None
    # With int8 it warns in each layer of each step that it casts the layer's input.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    layers = dict(_layers(model, lists))
    if not layers:
        raise UserError(
            "The model has no layers to quantize under the names that {family} has for its blocks.",
            "Set model.weights to 'full', or use another base model.",
            family=title,
        )
    eight_bit = _movable(library.Linear8bitLt)
    for path, layer in layers.items():
        size, dtype = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.dtype
        if bits == "int8" or path.endswith(".wo"):  # T5 would convert the input of this one to packed 4-bit weights
            quantized = eight_bit(*size, has_fp16_weights=False)
        else:
            quantized = library.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
        quantized.load_state_dict(layer.state_dict())
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, quantized.to("cpu").requires_grad_(False))
        if quantized.bias is not None:
            quantized.bias.data = quantized.bias.data.to(dtype)


def _layers(model: nn.Module, lists: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers in lists of blocks that the kernels take, but for modulations, with their paths."""
    for path, layer in model.named_modules():
        if (
            type(layer) is not nn.Linear
            or _MODULATION.search(path)
            or not any(f".{name}." in f".{path}" for name in lists)
        ):
            continue
        if layer.out_features % ROWS == layer.in_features % COLUMNS == 0:
            yield path, layer


def set_weight(layer: nn.Module, name: str, value: Tensor) -> None:
    """Give a layer the same frozen weight in another place; one in 8 or 4 bits keeps its scales."""
    parameter: Any = layer._parameters[name]
    if name != "weight" or not (hasattr(layer, "state") or hasattr(parameter, "quant_state")):
        layer._parameters[name] = nn.Parameter(value, requires_grad=False)
        return
    parameter.data = value
    holder: Any
    for holder in (parameter, getattr(layer, "state", None)):
        if getattr(holder, "CB", None) is not None:
            holder.CB = value


def move_scales(layer: nn.Module, device: torch.device) -> None:
    """Move the scales of a layer's weight in 8 or 4 bits to a device, where they stay; they take little memory."""
    weight: Any = getattr(layer, "weight", None)
    if getattr(weight, "quant_state", None) is not None:
        weight.quant_state.to(device)
    holder: Any
    for holder in (weight, getattr(layer, "state", None)):
        if getattr(holder, "SCB", None) is not None:
            holder.SCB = holder.SCB.to(device)


def _movable(layer_class: Untyped) -> Untyped:
    """Return a class of 8-bit layers whose weight and scales move together.

    The library keeps both beside the parameter as well, and multiplies with those; torch, when it moves a model, moves
    only the parameter. The 4-bit layers need no such help.
    """

    class Movable(layer_class):  # type: ignore[misc]
        def _apply(self, *arguments: Untyped, **options: Untyped) -> "Movable":
            super()._apply(*arguments, **options)
            for holder in (self.weight, self.state):  # the second from the first prediction on
                if holder.CB is not None:
                    holder.CB, holder.SCB = self.weight.data, holder.SCB.to(self.weight.device)
            return self

    return Movable
