"""Quantize frozen weights, for GPUs that are too small for the base model in 16 bits.

8 bits with a scale for each row: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339 (section 2.1). 4 bits in blocks
of 64 with the quantiles of a normal distribution as levels: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314
(section 3). The adapter is trained in full precision, as there.
"""

import importlib
from typing import Any, Literal

from torch import nn

from trainer.errors import UserError

Bits = Literal["full", "int8", "nf4"]
ROWS, COLUMNS = 32, 64  # block size of the library's kernels; it divides all layers of real models


def quantize(denoiser: nn.Module, bits: Bits) -> None:
    """Quantize the linear layers of a denoiser's attention blocks; convolutions stay as they are.

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
    for path, layer in list(denoiser.named_modules()):
        if type(layer) is not nn.Linear or "attentions" not in path:
            continue
        if layer.out_features % ROWS or layer.in_features % COLUMNS:
            continue
        size, dtype = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.dtype
        if bits == "int8":
            quantized = library.Linear8bitLt(*size, has_fp16_weights=False)
        else:
            quantized = library.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
        quantized.load_state_dict(layer.state_dict())
        owner, _, name = path.rpartition(".")
        setattr(denoiser.get_submodule(owner), name, quantized.to("cpu").requires_grad_(False))
        if quantized.bias is not None:
            quantized.bias.data = quantized.bias.data.to(dtype)
