"""Blocks whose weights wait in main memory: the same bits, few weights on the device, and copies ahead of their use.

The device is the processor. It stands in for a card by a rule of its own: nothing computes with weights that wait.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.integration.families.test_families import answer, load, question
from tests.integration.families.test_transformers import small_sd3
from tests.integration.training.test_train import disturb, taken_from
from trainer import config, families
from trainer.adapter_files import reader
from trainer.base_models.registry import FAMILIES
from trainer.families import Family, gradient_checkpointing, offload, quantize

KINDS: dict[str, dict[str, Any]] = {"LoRA": {}, "LoHa": {"kind": "loha"}, "DoRA": {"dora": True}}
VIEWS = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


class Card(TorchDispatchMode):
    """Refuses to compute with weights that wait, and counts the blocks whose weights are copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._offloaded = offload._OFFLOADED[model]
        blocks = self._offloaded.weights.items()
        self._waiting = {
            weight.waiting.untyped_storage().data_ptr(): block for block, weights in blocks for weight in weights
        }
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


def attached(family: Family, **adapter: Any) -> families.Adapter:  # noqa: ANN401 - any settings
    data = {"name": "x", "dataset": "x", "model": {"base": "x"}, "adapter": adapter}
    return families.attach(family, config.build(data).adapter, text_encoder=False, seed=0)


def gradients(family: Family, adapter: families.Adapter) -> list[Tensor]:
    """Return the gradients of one step, with a loss on whatever the model predicts."""
    noisy, timesteps, conditioning = question(family)
    family.predict(noisy, timesteps, conditioning).float().square().mean().backward()
    return taken_from(adapter)


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) > 0 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


CASES = (
    "sd15 LoHa half",
    "sd15 DoRA all",
    "sd3 LoRA half",
    "flux LoRA all",
    "chroma LoRA half",
    "z_image LoRA all",
    "flux2_klein LoRA half",
)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_bits(bases: dict[str, Path], case: str) -> None:
    base, kind, share = case.split()
    family = load(bases[base])
    adapter = attached(family, rank=4, **KINDS[kind])
    disturb(adapter)
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


@pytest.mark.parametrize("base", ["sd15", "flux", "chroma"])
def test_predictions_are_the_same_and_weights_are_copied_once(bases: dict[str, Path], base: str) -> None:
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


def test_an_adapter_patches_weights_that_wait(bases: dict[str, Path]) -> None:
    family = load(bases["sd15"])
    base = answer(family)
    adapter = attached(family, rank=4)
    disturb(adapter)
    file = reader.of_tensors(adapter.tensors(), "a")
    adapter.detach()
    with families.patched(family, [(file, 0.7)]):
        expected = answer(family)
    assert not torch.equal(expected, base)
    gradient_checkpointing.recompute(family, "off", "all")
    assert torch.equal(answer(family), base)
    with families.patched(family, [(file, 0.7)]):
        assert torch.equal(answer(family), expected)
    assert torch.equal(answer(family), base)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_weights_in_fewer_bits_wait_too(bits: quantize.Bits) -> None:
    pytest.importorskip("bitsandbytes")
    transformer = small_sd3(4).requires_grad_(False)
    spec = FAMILIES["sd3"]
    quantize.quantize(transformer, bits, spec.modules.quantized, spec.title)
    family: Any = SimpleNamespace(denoiser=transformer, text_encoders={}, device=torch.device("cpu"), spec=spec)
    noisy = torch.randn(1, 16, 8, 8, requires_grad=True)
    text, pooled = torch.randn(1, 4, 64), torch.randn(1, 64)

    def gradient() -> Tensor:
        noisy.grad = None
        output = transformer(
            hidden_states=noisy, timestep=torch.tensor([500.0]), encoder_hidden_states=text, pooled_projections=pooled
        )
        output.sample.square().mean().backward()
        return noisy.grad

    expected = gradient()
    gradient_checkpointing.recompute(family, "all", "all")
    with Card(transformer):
        for _ in range(2):
            assert torch.equal(gradient(), expected)


def test_an_adapter_may_be_attached_while_weights_wait(bases: dict[str, Path]) -> None:
    """As where the whole model never fits."""
    family = load(bases["sd15"])
    expected = gradients(family, attached(family, rank=4, dora=True))
    family = load(bases["sd15"])
    gradient_checkpointing.recompute(family, "off", "all")
    adapter = attached(family, rank=4, dora=True)
    gradient_checkpointing.recompute(family, "all", "all")
    with Card(family.denoiser):
        assert equal(gradients(family, adapter), expected)


class Stream:
    """Numbers its events, and notes how much of the other stream it has waited for."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.events = self.waited = 0

    def record_event(self) -> int:
        self.events += 1
        return self.events

    def wait_event(self, event: int) -> None:
        self.waited = max(self.waited, event)


def test_copies_and_computations_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is filled after its last block has computed, and a block computes after its slot is filled."""
    copies, computes = Stream(), Stream()
    streams = SimpleNamespace(current_stream=lambda _: computes, stream=lambda _: nullcontext())
    monkeypatch.setattr(torch, "get_device_module", lambda _: streams)
    blocks = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))).requires_grad_(False)
    offloaded = offload.offload(blocks, list(blocks), torch.device("cpu"))
    assert offloaded
    offloaded.stream = copies
    used: dict[int, int] = {}  # by slot: the first event of the computations after its block was used
    for block in blocks:
        block.forward = offloaded.forward(block)

    for _ in range(2):
        for block in blocks:
            block(torch.ones(1, 4, requires_grad=True))
            slot = next(slot for slot in offloaded.slots if slot.block is block)
            assert computes.waited >= slot.filled, "it is there"
            assert copies.waited >= used.get(id(slot), 0), "nobody needs what was there"
            used[id(slot)] = computes.events + 1
    blocks[2](torch.ones(1, 4, requires_grad=True))
    assert computes.waited < copies.events, "the next one's are under way"
    offloaded.send_home()
    assert computes.waited == copies.events, "the memory is not given to others while it is filled"


def test_a_device_is_asked_for_room_for_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, card = nn.Linear(100, 10), torch.device("cuda", 0)
    device = SimpleNamespace(memory_reserved=lambda _: 0, memory_allocated=lambda _: 0)
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    for free, expected in ((4039, True), (4040, False)):
        device.mem_get_info = lambda _, free=free: (free, 8192)
        assert offload.is_too_large(model, card) == expected
    assert not offload.is_too_large(model, torch.device("cpu"))
