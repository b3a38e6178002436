"""Questions about hardware, answered by backends that are not here."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch

from trainer import devices, processes
from trainer.errors import is_out_of_memory

GB = 2**30


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str, **functions: Any) -> torch.device:  # noqa: ANN401 - any functions
    """Give this process accelerators of a kind; `functions` are those of torch's module for it."""
    backend = SimpleNamespace(**functions)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda _: backend)
    return torch.device(kind, 0)


@pytest.mark.parametrize(("kind", "number"), [("cuda", 0), ("cuda", None), ("xpu", 0)])
def test_a_card_with_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, kind: str, number: int | None) -> None:
    calls, fractions = list[str](), [1.0]

    def fraction(device: torch.device | None) -> float:
        assert device is None or device.index is not None, "torch refuses it"
        return fractions[-1]

    def set_fraction(share: float, device: torch.device | None) -> None:
        fraction(device)
        fractions.append(share)

    sizes = {"memory_reserved": 2, "memory_allocated": 1, "max_memory_allocated": 3, "max_memory_reserved": 4}
    functions: dict[str, Any] = {name: lambda _, size=size: size * GB for name, size in sizes.items()}
    functions |= {"get_device_name": lambda device: f"Card {device.index}", "mem_get_info": lambda _: (5 * GB, 8 * GB)}
    functions |= {"get_per_process_memory_fraction": fraction, "set_per_process_memory_fraction": set_fraction}
    functions["reset_peak_memory_stats"] = lambda _: calls.append("reset")
    functions["empty_cache"] = lambda: calls.append("empty")
    pretend(monkeypatch, kind, **functions)
    card = torch.device(kind) if number is None else torch.device(kind, number)
    assert devices.best().type == kind
    assert devices.is_accelerator(card)
    assert (devices.count(), devices.names()) == (2, ["Card 0", "Card 1"])
    assert devices.available_memory(card) == 7 * GB
    assert devices.unused_memory(card) == 6 * GB
    devices.limit_memory(card, 4 * GB)
    assert (fractions[-1], devices.unused_memory(card)) == (0.5, 3 * GB)
    devices.limit_memory(card, 9 * GB)
    assert fractions[-1] == 1
    assert (devices.peak_memory(card), devices.peak_reserved(card)) == (3 * GB, 4 * GB)
    devices.reset_peak(card)
    devices.trim()
    assert calls == ["reset", "empty"]


@pytest.mark.parametrize(("main", "free"), [(64, 14), (6, 6)])
def test_graphics_of_intel_may_not_say_what_is_free(monkeypatch: pytest.MonkeyPatch, main: int, free: int) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("The device (Intel(R) Graphics [0xb080]) doesn't support querying the available free memory")

    functions: dict[str, Any] = {"mem_get_info": refuse, "memory_reserved": lambda _: 2 * GB}
    functions["get_device_properties"] = lambda _: SimpleNamespace(total_memory=16 * GB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=main * GB))
    assert devices.available_memory(pretend(monkeypatch, "xpu", **functions)) == (free + 2) * GB


def test_a_mac_shares_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fractions = list[str](), list[float]()
    sizes = {"recommended_max_memory": 11, "current_allocated_memory": 2, "driver_allocated_memory": 3}
    functions: dict[str, Any] = {name: lambda size=size: size * GB for name, size in sizes.items()}
    functions |= {"set_per_process_memory_fraction": fractions.append, "empty_cache": lambda: calls.append("empty")}
    mac = pretend(monkeypatch, "mps", **functions)
    assert devices.name(mac) == "MPS"
    assert devices.available_memory(mac) == 11 * GB
    assert devices.unused_memory(mac) == 9 * GB
    devices.limit_memory(mac, 5.5 * GB)
    assert fractions == [0.5]
    devices.reset_peak(mac)  # has no statistics
    assert (devices.peak_memory(mac), devices.peak_reserved(mac)) == (2 * GB, 3 * GB)
    devices.trim()
    assert calls == ["empty"]


def test_tensors_share_memory_that_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch pins whole powers of two: one for each tensor could be twice as much."""
    sizes = list[int]()
    empty = torch.empty

    def pinned(size: int, *, pin_memory: bool = False, **options: Any) -> torch.Tensor:  # noqa: ANN401 - as in torch
        if pin_memory:
            sizes.append(size)
        return empty(size, **options)

    card = pretend(monkeypatch, "cuda")
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: False)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(devices, "PINNED_AT_ONCE", 256)
    weights = [torch.arange(30, dtype=torch.float16).reshape(5, 6), torch.rand(3), torch.rand(2, 50), torch.ones(1)]
    pin = devices.Pinned(card)
    copies = [pin(weight) for weight in weights]
    assert all(torch.equal(copy, weight) for copy, weight in zip(copies, weights, strict=True))
    assert all(copy.data_ptr() % 16 == 0 for copy in copies)
    assert sizes == [256, 400, 256]


@pytest.fixture
def settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What `prepare` sets is as before after the test."""
    for variable in devices._ALLOCATOR:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.benchmark
    yield monkeypatch
    matmul.allow_tf32, cudnn.benchmark = before


SEGMENTS = "expandable_segments:True"


@pytest.mark.parametrize(
    ("kind", "name", "platform", "expected"),
    [
        ("cuda", "NVIDIA GeForce RTX 2060", "linux", (True, False, SEGMENTS)),
        ("cuda", "Tesla T4", "win32", (True, False, None)),
        ("cuda", "NVIDIA GeForce GTX 1660 Ti", "linux", (True, True, SEGMENTS)),  # it computes NaN in fp16
        ("cuda", "NVIDIA T1000", "linux", (True, True, SEGMENTS)),
        ("xpu", "Arc", "linux", (False, False, None)),
    ],
)
def test_torch_is_set_up_for_a_card(
    settings_of_torch: pytest.MonkeyPatch, kind: str, name: str, platform: str, expected: tuple[bool, bool, str | None]
) -> None:
    pretend(settings_of_torch, kind, get_device_name=lambda _: name)
    settings_of_torch.setattr("sys.platform", platform)
    devices.prepare()
    allocator = os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, allocator) == expected
    settings_of_torch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    devices.prepare()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ, "an allocator that is set up stays so"


def test_attention_of_amd_is_asked_to_save_memory(settings_of_torch: pytest.MonkeyPatch) -> None:
    variable = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
    settings_of_torch.setenv(variable, "0")
    settings_of_torch.setattr(torch.version, "hip", "7.0")
    pretend(settings_of_torch, "cuda")
    devices.prepare()
    assert os.environ[variable] == "0", "what somebody has set stays so"
    del os.environ[variable]
    devices.prepare()
    assert os.environ[variable] == "1"


PRECISIONS = {("cuda", True): "bf16", ("cuda", False): "fp16", ("mps", True): "bf16", ("mps", False): "fp32"}


@pytest.mark.parametrize(("kind", "in_hardware"), PRECISIONS)
def test_what_only_emulates_bf16_computes_in_another(
    monkeypatch: pytest.MonkeyPatch, kind: str, in_hardware: bool
) -> None:
    """An RTX 2070 says that it supports bf16, which it emulates, as do Macs before macOS 14. A card of AMD has none."""
    functions = {"is_bf16_supported": lambda including_emulation=True: including_emulation or in_hardware}
    device = pretend(monkeypatch, kind, **functions)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: in_hardware)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.eye(2) + 1 - torch.eye(2))
    assert devices.best_precision(device) == PRECISIONS[kind, in_hardware]
    monkeypatch.setattr(torch, "ones", Mock(side_effect=TypeError("BFloat16 is not supported on MPS")))
    assert kind == "cuda" or devices.best_precision(device) == "fp32"


def test_the_cpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    cpu = devices.best()
    assert (cpu.type, devices.is_accelerator(cpu), devices.name(cpu)) == ("cpu", False, "CPU")
    assert (devices.count(), devices.names()) == (0, [])
    assert devices.available_memory(cpu) > devices.peak_memory(cpu) > 0
    gc.collect()
    processes.trim_malloc()  # or it is taken from what other tests freed
    before = psutil.Process().memory_info().rss
    len(b"x" * (256 * 2**20))
    assert devices.peak_memory(cpu) > before + 200 * 2**20 or sys.platform != "linux", "though it is gone again"
    assert devices.unused_memory(cpu) > 0
    devices.limit_memory(cpu, GB)  # has no such limit
    assert devices.best_precision(cpu) in ("bf16", "fp32")
    devices.trim()


@pytest.mark.parametrize(("has_bf16", "is_faster"), [(True, True), (True, False), (False, True)])
def test_a_cpu_computes_in_bf16_if_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, is_faster: bool
) -> None:
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: has_bf16, raising=False)
    clock, product = [0.0], torch.Tensor.__matmul__

    def multiply(matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        clock[0] += 1.0 if (matrix.dtype == torch.bfloat16) == is_faster else 2.0
        return product(matrix, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    monkeypatch.setattr("time.process_time", lambda: clock[0])
    monkeypatch.setattr(devices, "_is_bf16_faster", devices._is_bf16_faster.__wrapped__)
    assert devices.best_precision(torch.device("cpu")) == ("bf16" if has_bf16 and is_faster else "fp32")


MESSAGES = Path(__file__).with_name("out_of_memory.txt").read_text(encoding="utf-8").splitlines()  # as libraries say it


def test_out_of_memory_failed_devices_and_other_errors_are_told_apart() -> None:
    for message in MESSAGES:
        assert is_out_of_memory(RuntimeError(message)), message
        assert not devices.is_fault(RuntimeError(message)), message
    assert all(map(is_out_of_memory, (MemoryError(), torch.OutOfMemoryError())))
    assert not any(map(is_out_of_memory, (RuntimeError("CUDA error: device-side assert"), ValueError("out of range"))))
    for text in ("CUDA error: an illegal memory access was encountered", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"):
        assert devices.is_fault(RuntimeError(text))
    assert devices.is_fault(RuntimeError("NCCL Error 2: unhandled system error"))
    assert devices.is_fault(RuntimeError("!handles_.at(i) INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:487"))
