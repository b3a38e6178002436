"""A CUDA card that computes nothing: tensors have shapes and types on it, no values, and their memory is counted.

torch's FakeTensorMode does most of it. What a build without CUDA lacks is added here, to this process for good, and
before torch is imported.
"""

# ruff: noqa: E402 - the guard must be there before torch is
import ctypes
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

_LIBRARIES = Path(str(importlib.util.find_spec("torch").origin)).parent / "lib"  # type: ignore[union-attr]
for library in (_LIBRARIES / "libtorch_cpu.so", os.environ["LIMNER_FAKE_CUDA_GUARD"]):
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cuda", 0)
BLOCK = 512  # bytes, to a multiple of which CUDA's allocator rounds


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that are alive on the card, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as in torch
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.device.type == CARD.type:
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._alive:
            return

        def free(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def inserted(size: int) -> Iterator[Meter]:
    """Put a card with so many bytes into this process inside the `with`; yields its meter. Tensors get no values."""
    meter = Meter()
    torch.cuda.mem_get_info = lambda device=None: (size - meter.now, size)
    torch.cuda.memory_allocated = torch.cuda.memory_reserved = lambda device=None: meter.now
    torch.cuda.get_per_process_memory_fraction = lambda device=None: 1.0
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.Stream = _Stream  # type: ignore[misc, assignment]
    torch.cuda.current_stream = _Stream
    torch.cuda.stream = nullcontext  # type: ignore[assignment]
    Tensor.is_pinned = lambda self, device=None: self.device.type == "cpu"
    checkpoint.DefaultDeviceType.set_device_type(CARD.type)
    functional.scaled_dot_product_attention = _attention
    nn.Module._apply = _apply
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        yield meter


class _Stream:
    """One on which everything is done at once."""

    device = CARD

    def __init__(self, device: torch.device | None = None) -> None:
        pass

    def record_event(self) -> None:
        """Nothing is ever to be waited for."""

    def wait_event(self, event: None) -> None:
        """Go on."""


def _apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move or cast a module by replacing its tensors; torch would swap them in place, which fake ones do not allow."""
    for child in module.children() if recurse else ():
        _apply(child, convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(convert(parameter), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)
    return module


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend with the kernel that a card would choose: flash in 16 bits, memory-efficient in 32 or with a mask."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    if query.dtype == torch.float32 or attn_mask is not None:
        assert not enable_gqa, "another kernel is for grouped queries"
        learns = any(tensor.requires_grad for tensor in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
