"""The device to compute on: its name, memory and best precision. Nothing else asks torch about hardware.

Torch has a module for each kind of accelerator (`torch.cuda`, which serves ROCm too, `torch.xpu`, `torch.mps`). The
first two answer alike; MPS has no memory of its own and no statistics of peaks.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import torch
from torch import Tensor

from trainer.errors import is_out_of_memory

Untyped: TypeAlias = Any  # objects of diffusers, transformers and others that have no types, or whose differ by device
PINNED_AT_ONCE = 2**29  # bytes
LEFT = 2**29  # bytes of an accelerator to leave free, for the screen and for what its libraries take later
Precision = Literal["fp32", "bf16", "fp16"]
NOWHERE = torch.device("meta")  # where tensors have shapes alone
# Linux counts the most memory that a process has had since it was told to begin (proc_pid_clear_refs(5)).
_FORGET, _COUNTED = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu, where this build of torch has them
# What errors of a device that has failed at its work say; their class differs by version.
_FAULTS = (
    "cuda error",
    "hip error",
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "nccl error",
    "handles_.at(i) internal assert",  # after memory ran out, torch cannot allocate any more (pytorch 188008)
)
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # variables with its settings; any torch reads the first
# NVIDIA's cards of the Turing generation without tensor cores: cuDNN's first choice for them computes NaN in fp16.
_NAN_IN_FP16 = re.compile(r"GTX 16|MX[45]50|CMP 30HX|\bT(500|550|600|1000|1200|2000)\b")


def prepare() -> None:
    """Set torch up for an NVIDIA or AMD card, before the first tensor is on it; other devices have nothing to set.

    Matrices that are left in fp32 are multiplied in TF32, as convolutions are by default. On Linux, segments of memory
    that can grow keep free memory from being split into pieces that are too small. AMD's builds compute attention in
    little memory on recent Radeons only if they are asked to. Where cuDNN's own choice of a convolution fails in fp16,
    it tries which one is fastest instead (AUTOMATIC1111/stable-diffusion-webui 4407).
    """
    if best().type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if any(map(_NAN_IN_FP16.search, names())):
        torch.backends.cudnn.benchmark = True
    if torch.version.hip:
        os.environ.setdefault("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1")
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def best() -> torch.device:
    """Return the accelerator of this machine, or the CPU if there is none or LIMNER_DEVICE asks for it."""
    return (torch.accelerator.current_accelerator() if count() else None) or torch.device("cpu")


def count() -> int:
    """Count the accelerators of this machine; 0 if LIMNER_DEVICE is "cpu"."""
    if os.environ.get("LIMNER_DEVICE") == "cpu" or not torch.accelerator.is_available():
        return 0
    return torch.accelerator.device_count()


def is_fault(error: Exception) -> bool:
    """Return True if a device failed at its work: this process cannot use it any more, but a new one may."""
    text = str(error).lower()
    return not is_out_of_memory(error) and any(phrase in text for phrase in _FAULTS)


def is_accelerator(device: torch.device) -> bool:
    """Return True if a device is an accelerator rather than the CPU."""
    return device.type != "cpu"


def name(device: torch.device) -> str:
    """Return the name of a device for display."""
    get_name = getattr(_module(device), "get_device_name", None)
    return str(get_name(device)) if get_name else device.type.upper()


def names() -> list[str]:
    """List the names of this machine's accelerators."""
    return [name(torch.device(best().type, number)) for number in range(count())]


def best_precision(device: torch.device) -> Precision:
    """Return the fastest precision that a device computes in itself; the base model is kept in it.

    `is_bf16_supported()` counts emulation on cards before Ampere, which is far slower than fp16 there.
    """
    if device.type == "cpu":
        has_bf16 = any(getattr(torch.cpu, check, bool)() for check in _CPU_BF16)
        return "bf16" if has_bf16 and _is_bf16_faster() else "fp32"
    if device.type == "mps":
        # Older systems only emulate it, and accelerate refuses to train in it there.
        return "bf16" if torch.backends.mps.is_macos_or_newer(14, 0) and _computes_in_bf16(device) else "fp32"
    return "bf16" if _module(device).is_bf16_supported(including_emulation=False) else "fp16"


def speeds() -> dict[str, float]:
    """Return how many numbers this processor multiplies in a second, as training small and large models uses it.

    In a product of matrices as large as those of a step; {} of a machine with an accelerator.
    """
    device, threads = best(), torch.get_num_threads()
    if is_accelerator(device):
        return {}
    large = {"bf16": torch.bfloat16}.get(best_precision(device), torch.float32)
    seconds = {
        "small": _seconds_of_product(torch.float32, 1024),
        "large": _seconds_of_product(large, 1024, threads=threads),
    }
    return {kind: 1024**3 / least for kind, least in seconds.items()}


@cache
def _is_bf16_faster() -> bool:
    """Return True if the CPU multiplies matrices faster in bf16 than in fp32.

    Having instructions for it is not enough: on an AMD EPYC (Zen 4) bf16 did 2.4 times as much per second, on an Intel
    Xeon (Emerald Rapids) whose AMX a virtual machine hides, half as much: there a step of Stable Diffusion at 256
    pixels took 5.5 s in bf16 and 4.2 s in fp32.
    """
    # On one thread: several wait for each other, which is not what is measured.
    return _seconds_of_product(torch.bfloat16, 512) < _seconds_of_product(torch.float32, 512)


def _seconds_of_product(dtype: torch.dtype, side: int, *, threads: int = 1) -> float:
    """Return the seconds of a product of two matrices, the least of some, as others may use the machine.

    Of one thread they are CPU seconds, which others hardly lengthen.
    """
    clock = {1: time.process_time}.get(threads, time.perf_counter)
    matrix, seconds, before = torch.ones(side, side, dtype=dtype), [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(8):
            began = clock()
            matrix @ matrix
            seconds.append(clock() - began)
    finally:
        torch.set_num_threads(before)
    return min(seconds)


def sampling_dtype(device: torch.device) -> torch.dtype:
    """Return the type of numbers to generate images with: fp16 has more digits than bf16, but not on every device."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "mps" and best_precision(device) == "bf16" else torch.float16


def _computes_in_bf16(device: torch.device) -> bool:
    try:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones == 2).all())
    except (RuntimeError, TypeError):  # a Mac with a card of AMD
        return False


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device, with those that it holds."""
    if device.type == "cpu":
        return psutil.Process().memory_info().rss + psutil.virtual_memory().available
    module = _module(device)
    if device.type == "mps":
        return int(module.recommended_max_memory())
    free, _ = _free_and_total(device)
    return free + int(module.memory_reserved(device))


def unused_memory(device: torch.device) -> int:
    """Return the bytes of tensors for which there is still room on a device."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    module = _module(device)
    if device.type == "mps":
        return int(module.recommended_max_memory() - module.current_allocated_memory())
    room, (_, total) = available_memory(device), _free_and_total(device)
    if hasattr(module, "get_per_process_memory_fraction"):
        room = min(room, int(total * module.get_per_process_memory_fraction(_numbered(device))))
    return room - int(module.memory_allocated(device))


def limit_memory(device: torch.device, most: float) -> None:
    """Let this process run out of memory at so many bytes of an accelerator.

    Windows would lend it main memory instead, at a hundredth of the speed.
    """
    module = _module(device)
    if device.type == "cpu" or not hasattr(module, "set_per_process_memory_fraction"):
        return
    if device.type == "mps":
        module.set_per_process_memory_fraction(min(1.0, most / module.recommended_max_memory()))
    else:
        module.set_per_process_memory_fraction(min(1.0, most / _free_and_total(device)[1]), _numbered(device))


def reset_peak(device: torch.device) -> bool:
    """Reset the peaks that `peak_memory` and `peak_reserved` return; return False where nobody counts them."""
    if device.type == "cpu":
        return _reset_main_memory()
    counts = hasattr(_module(device), "reset_peak_memory_stats")
    if counts:
        _module(device).reset_peak_memory_stats(device)
    return counts


def peak_memory(device: torch.device) -> int:
    """Return the bytes of tensors on a device at their peak; where that is not counted, those that are there now.

    On a CPU it is all that this process has had.
    """
    module = _module(device)
    if device.type == "cpu":
        return max(_peak_of_main_memory(), psutil.Process().memory_info().rss)
    if device.type == "mps":
        return int(module.current_allocated_memory())
    return int(module.max_memory_allocated(device))


def _reset_main_memory() -> bool:
    try:
        counter = os.open(_FORGET, os.O_WRONLY)
    except OSError:
        return False
    try:
        return os.write(counter, b"5") == 1
    except OSError:  # a kernel without it
        return False
    finally:
        os.close(counter)


def _peak_of_main_memory() -> int:
    """Return what Linux has counted; 0 elsewhere."""
    if not _COUNTED.exists():
        return 0
    lines = _COUNTED.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def peak_reserved(device: torch.device) -> int:
    """Return the bytes that torch has taken from an accelerator at their peak, with what it keeps for later."""
    module = _module(device)
    if device.type == "mps":
        return int(module.driver_allocated_memory())  # it gives nothing back before `trim`, so that this is the peak
    return int(module.max_memory_reserved(device))


def trim() -> None:
    """Give back the memory of the accelerator that is kept but not used."""
    if count():
        _module(best()).empty_cache()


def has_own_memory(device: torch.device) -> bool:
    """Return True if a device has memory beside main memory; MPS, and a processor, have not."""
    return device.type not in ("cpu", "mps")


def copy_stream(device: torch.device) -> Untyped:
    """Return a stream on which a device copies while it computes; None if it has no streams."""
    return _module(device).Stream(device) if has_own_memory(device) else None


def compute_stream(device: torch.device) -> Untyped:
    """Return the stream on which a device computes."""
    return _module(device).current_stream(device)


def on_stream(stream: Untyped) -> AbstractContextManager[Any]:
    """Copy on a stream inside the `with`; None = on the one that computes."""
    if stream is None:
        return nullcontext()
    context: AbstractContextManager[Any] = _module(stream.device).stream(stream)
    return context


class Pinned:
    """Copies tensors into main memory that is pinned, from where a device fetches them by itself.

    Torch pins whole powers of two, so that many tensors share one, and little is lost.
    """

    def __init__(self, device: torch.device) -> None:
        self._pins = has_own_memory(device)
        self._free = torch.empty(0, dtype=torch.uint8)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a tensor in pinned memory; as it is if it is there already, or the device shares main memory."""
        if not self._pins or (tensor.device.type == "cpu" and tensor.is_pinned()):
            return tensor
        if tensor.nbytes > len(self._free):
            self._free = torch.empty(max(PINNED_AT_ONCE, tensor.nbytes), dtype=torch.uint8, pin_memory=True)
        taken = -(-tensor.nbytes // 16) * 16
        copy = self._free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._free = self._free[taken:]
        return copy.copy_(tensor)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from main memory to a device, without a wait for what that is computing.

    Only pinned memory is copied so: of other memory the copy begins when all work before it is done.
    """
    if not has_own_memory(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def read_later(*numbers: Tensor) -> Callable[[], list[float]]:
    """Begin to read numbers of one type from a device; the function returned waits for these, not for later work."""
    values = torch.stack(numbers)
    if not has_own_memory(values.device):
        known: list[float] = values.tolist()
        return lambda: known
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = compute_stream(values.device).record_event()

    def read() -> list[float]:
        copied.synchronize()
        result: list[float] = copy.tolist()
        return result

    return read


def _free_and_total(device: torch.device) -> tuple[int, int]:
    """Return the free bytes and all bytes of a device with memory of its own.

    Graphics that are part of a processor of Intel, and cards of Intel in WSL2, do not say what is free (pytorch
    194576): it is what this process has not taken, but no more than main memory has left, which may be the same.
    """
    module = _module(device)
    try:
        free, total = module.mem_get_info(device)
    except RuntimeError as error:
        if is_out_of_memory(error) or is_fault(error):
            raise
        total = module.get_device_properties(device).total_memory
        free = min(total - module.memory_reserved(device), psutil.virtual_memory().available)
    return int(free), int(total)


def _numbered(device: torch.device) -> torch.device | None:
    """Return a device for functions that take none without a number, but None for the current one."""
    return None if device.index is None else device


def _module(device: torch.device) -> Untyped:
    return torch.get_device_module(device.type)
