"""Blocks whose weights wait in main memory: the same bits, few weights on the device, and copies ahead of their use.

The device is the processor. It stands in for a card by a rule of its own: nothing computes with weights that wait.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.integration.families.test_families import answer, load, question
from tests.integration.training.test_train import cases
from trainer import config, families
from trainer.families import Family, gradient_checkpointing, offload

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoHa": {"kind": "loha"},
    "LoKr": {"kind": "lokr"},
    "DoRA": {"dora": True},
}
VIEWS = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


PAIRS = "sd15-LoRA-half sd15-LoHa-all sd15-LoKr-half sd15-DoRA-all sdxl-LoRA-all sd3-LoRA-half flux-LoRA-all"


class Card(TorchDispatchMode):
    """Refuses to compute with weights that wait, and counts the blocks whose weights are copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._offloaded = offload._OFFLOADED[model]
        waiting = {
            weight.waiting.untyped_storage().data_ptr(): block
            for block, weights in self._offloaded.weights.items()
            for weight in weights
        }
        self._waiting = waiting
        self.copied: list[nn.Module] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as in torch
        touched = [
            self._waiting[key]
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage().data_ptr()) in self._waiting
        ]
        if func is torch.ops.aten.copy_.default:
            if touched and touched[0] not in self.copied[-1:]:
                self.copied.append(touched[0])
        else:
            assert not touched or func in VIEWS, f"{func} with weights that wait"
        return func(*args, **(kwargs or {}))


def settings(**adapter: Any) -> Any:  # noqa: ANN401 - any settings
    data = {"name": "x", "dataset": "x", "model": {"base": "x"}, "adapter": adapter}
    return config.build(data).adapter


def gradients(family: Family, adapter: families.Adapter) -> list[Tensor]:
    """Return the gradients of one step, with a loss on whatever the model predicts."""
    noisy, timesteps, conditioning = question(family)
    family.predict(noisy, timesteps, conditioning).float().square().mean().backward()  # type: ignore[no-untyped-call]
    grads = [parameter.grad for parameter in adapter.parameters()]
    for parameter in adapter.parameters():
        parameter.grad = None
    return [grad for grad in grads if grad is not None]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) > 0 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def moved(adapter: families.Adapter) -> None:
    """Let an adapter change something, or half of its gradients are zero."""
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


@pytest.mark.parametrize("case", cases(PAIRS.split(), pytest.mark.slow, PAIRS.split()[3:4]))
def test_gradients_are_the_same_bits(bases: dict[str, Path], case: str) -> None:
    base, kind, share = case.split("-")
    family = load(bases[base])
    adapter = families.attach(family, settings(rank=4, **KINDS[kind]), text_encoder=False, seed=0)
    moved(adapter)
    expected = gradients(family, adapter)
    gradient_checkpointing.recompute(family, "all", share)
    with Card(family.denoiser) as card:
        assert equal(gradients(family, adapter), expected)
        blocks = list(dict.fromkeys(card.copied))
        assert len(blocks) == len(offload._OFFLOADED[family.denoiser].weights)
        there, back = card.copied[: len(blocks)], card.copied[len(blocks) :]
        assert there == blocks
        assert back == blocks[-3::-1][: len(back)], "two are on the device, and nothing learns below the first adapter"
        assert len(back) >= len(blocks) - 4
        card.copied.clear()
        assert equal(gradients(family, adapter), expected)
        assert len(card.copied) <= 2 * len(blocks) - 2
    gradient_checkpointing.recompute(family, "off")
    assert equal(gradients(family, adapter), expected), "it can be taken back"


@pytest.mark.parametrize("base", ["sd15", "flux"])
def test_predictions_are_the_same_bits_and_copy_once(bases: dict[str, Path], base: str) -> None:
    family = load(bases[base])
    expected = answer(family)
    gradient_checkpointing.recompute(family, "off", "all")
    with Card(family.denoiser) as card:
        assert torch.equal(answer(family), expected)
        blocks = list(dict.fromkeys(card.copied))
        card.copied.clear()
        for _ in range(2):
            assert torch.equal(answer(family), expected)
        assert card.copied == 2 * [*blocks[1:], blocks[0]], "the first one ahead of the next prediction"
    offload.move(family.denoiser, "cpu")
    assert torch.equal(answer(family), expected)


def test_a_device_is_asked_for_room_for_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, card = nn.Linear(100, 10), torch.device("cuda", 0)
    for free, expected in ((4039, True), (4040, False)):
        monkeypatch.setattr(torch, "get_device_module", lambda _, free=free: backend(free))
        assert offload.is_too_large(model, card) == expected
    assert not offload.is_too_large(model, torch.device("cpu"))


def backend(free: int) -> SimpleNamespace:
    return SimpleNamespace(
        mem_get_info=lambda _: (free, 8192), memory_reserved=lambda _: 0, memory_allocated=lambda _: 0
    )
