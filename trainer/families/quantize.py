"""Frozen weights in fewer bits, for cards that are too small for the base model in 16.

8 bits with a scale for each row: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339 (section 2.1). 4 bits in blocks
of 64 with levels as a normal distribution has them: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314 (section 3).
The adapter above is trained in full precision, as there.
"""

import importlib
from typing import Any, Literal

from torch import nn

from trainer.errors import UserError

Bits = Literal["full", "int8", "nf4"]
ROWS, COLUMNS = 32, 64  # what the library's kernels take at a time; they divide all layers of real models


def quantise(denoiser: nn.Module, bits: Bits) -> None:
    """Bring the linear layers of a denoiser's attention blocks to fewer bits; convolutions stay as they are.

    Raises:
        UserError: bitsandbytes is not installed.
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
    layers = [(path, one) for path, one in denoiser.named_modules() if type(one) is nn.Linear and "attentions" in path]
    for path, layer in layers:
        if layer.out_features % ROWS or layer.in_features % COLUMNS:
            continue
        size, dtype = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.dtype
        if bits == "int8":
            small = library.Linear8bitLt(*size, has_fp16_weights=False)
        else:
            small = library.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
        small.load_state_dict(layer.state_dict())
        owner, _, name = path.rpartition(".")
        setattr(denoiser.get_submodule(owner), name, small.to("cpu").requires_grad_(False))
        if small.bias is not None:
            small.bias.data = small.bias.data.to(dtype)
