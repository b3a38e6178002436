"""Blocks whose weights wait in main memory: of other adapters than LoRA, in predictions, and on two streams."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.integration.families.models import Card, answer, each, equal, gradients, load
from tests.integration.training.test_train import attached, disturb
from trainer import families
from trainer.adapter_files import reader
from trainer.base_models.registry import FAMILIES
from trainer.families.hardware import gradient_checkpointing, offload, quantize


@pytest.mark.parametrize("base", ["sd15", "chroma"])
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


@pytest.mark.parametrize("base", each(name for name, spec in FAMILIES.items() if spec.large_encoder))
def test_captions_are_the_same_where_a_large_encoder_waits(bases: dict[str, Path], base: str) -> None:
    family = load(bases[base])
    large = family.spec.large_encoder
    assert large

    def encoded() -> list[Tensor]:
        return [*family.encode_prompts(["rin, a person", ""]).values()]

    expected = encoded()
    encoder = family.prompt_encoders()[large.file_name]
    blocks = family.large_blocks(encoder)
    offload.offload(encoder, blocks, family.device, pinned=False)
    with Card(encoder) as card:
        assert equal(encoded(), expected)
    assert {*card.copied} == {*blocks}
    offload.move(encoder, "cpu")
    assert equal(encoded(), expected)


def test_an_adapter_patches_weights_that_wait(bases: dict[str, Path]) -> None:
    family = load(bases["sd15"])
    base = answer(family)
    adapter = attached(family, bases["sd15"], text_encoder=False)
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


def small_sd3(layers: int) -> diffusers.SD3Transformer2DModel:
    """A transformer of the smallest width that the kernels for fewer bits take."""
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 16, "attention_head_dim": 8, "num_attention_heads": 8}
    sizes |= {"joint_attention_dim": 64, "caption_projection_dim": 64, "pooled_projection_dim": 64}
    return diffusers.SD3Transformer2DModel(num_layers=layers, pos_embed_max_size=8, **sizes)


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


def test_an_adapter_may_be_attached_while_weights_wait(tiny_sd: Path) -> None:
    """As where the whole model never fits; a DoRA needs their lengths."""
    family = load(tiny_sd)
    expected = gradients(family, attached(family, tiny_sd, text_encoder=False, adapter__dora=True))
    family = load(tiny_sd)
    gradient_checkpointing.recompute(family, "off", "all")
    waiting = attached(family, tiny_sd, text_encoder=False, adapter__dora=True)
    gradient_checkpointing.recompute(family, "all", "all")
    with Card(family.denoiser):
        assert equal(gradients(family, waiting), expected)


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
    offload.offload(blocks, list(blocks), torch.device("cpu"))
    offloaded = offload._OFFLOADED[blocks]
    offloaded.stream = copies
    used: dict[int, int] = {}  # by slot: the first event of the computations after its block was used
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
