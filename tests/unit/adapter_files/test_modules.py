"""Kinds of modules: the change that each makes, against the equations of its paper, element by element."""

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from trainer.adapter_files import low_rank, modules, reader, safetensors_reader, summary, writer
from trainer.adapter_files.modules import Module
from trainer.adapter_files.reader import AdapterFile
from trainer.errors import UserError

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_mid_block_resnets_0_conv1"
NORM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_norm1"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_back(data: bytes) -> AdapterFile:
    return reader.of_file(safetensors_reader.parse(data, "x"))


def read(name: str, **parts: Tensor) -> Module:
    tensors = {f"{name}.{ending.replace('__', '.')}": tensor for ending, tensor in parts.items()}
    return read_back(save(tensors)).modules[name]


def rotation(block: Tensor) -> Tensor:
    """The Cayley transform of the skew-symmetric part, as a product of inverses."""
    skew, identity = block - block.T, torch.eye(len(block))
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def test_glora_of_a_convolution_mixes_its_inputs() -> None:
    weight, b2 = random(5, 6, 3, 3), random(2, 6, 3, 3)
    a1, a2, b1 = random(6, 2, 1, 1), random(2, 6, 1, 1), random(5, 2, 1, 1)
    module = read(CONVOLUTION, a1__weight=a1, a2__weight=a2, b1__weight=b1, b2__weight=b2, alpha=torch.tensor(2.0))
    mixed = torch.zeros_like(weight)
    mixing = a1[:, :, 0, 0] @ a2[:, :, 0, 0]
    for into in range(6):
        for out in range(6):
            mixed[:, out] += weight[:, into] * mixing[into, out]
    expected = mixed + torch.einsum("or,rihw->oihw", b1[:, :, 0, 0], b2)
    assert modules.kind(module) == "GLoRA"
    assert torch.allclose(module.delta(weight.flatten(1)), expected.flatten(1), atol=1e-4)


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_oft_rotates_blocks_of_rows(limit: float) -> None:
    weight, blocks, rescale = random(6, 4), random(2, 3, 3), random(6, 1).abs()
    module = read(LINEAR, oft_blocks=blocks, rescale=rescale, alpha=torch.tensor(limit))
    assert modules.kind(module) == "OFT"
    if limit:
        blocks = blocks * min(1, 6 * limit / float((blocks - blocks.mT).norm()))
    rows = weight.split(3)
    rotated = torch.cat([rotation(block).T @ part for block, part in zip(blocks, rows, strict=True)])
    assert torch.allclose(module.delta(weight), rescale * rotated - weight, atol=1e-4)


def test_boft_rotates_pairs_of_rows_ever_further_apart() -> None:
    weight, blocks = random(8, 3), random(3, 4, 2, 2)
    module = read(LINEAR, oft_blocks=blocks)
    assert modules.kind(module) == "BOFT"
    rotated = weight
    for level, pairs in enumerate(("01 23 45 67", "02 13 46 57", "04 15 26 37")):
        following = rotated.clone()
        for number, pair in enumerate(pairs.split()):
            rows = [*map(int, pair)]
            following[rows] = rotation(blocks[level, number]) @ rotated[rows]
        rotated = following
    assert torch.allclose(module.delta(weight), rotated - weight, atol=1e-4)
    assert torch.allclose((module.delta(weight) + weight).norm(), weight.norm(), atol=1e-4), "it only rotates"


@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_scales_outputs_or_inputs(on_input: int) -> None:
    weight, factors = random(5, 6, 3, 3), random(6 if on_input else 5)
    module = read(CONVOLUTION, weight=factors, on_input=torch.tensor(on_input))
    expected = weight * (factors.reshape(1, -1, 1, 1) if on_input else factors.reshape(-1, 1, 1, 1))
    assert torch.allclose(module.delta(weight.flatten(1)), expected.flatten(1))
    assert modules.fits(module, (5, 54))
    assert not modules.fits(module, (7, 7))


def test_full_changes_have_a_bias() -> None:
    module = read(CONVOLUTION, diff=random(5, 6, 3, 3), diff_b=random(5, seed=1))
    assert torch.equal(module.delta(), random(5, 6, 3, 3).flatten(1))
    assert torch.equal(modules.bias_change(module), random(5, seed=1))
    norm = read(NORM, w_norm=random(4), b_norm=random(4, seed=1))
    assert modules.kind(norm) == "norm"
    assert torch.equal(norm.delta(), random(4)[:, None])


@pytest.mark.parametrize("magnitude", [(4, 1), (1, 6)])
def test_loha_and_lokr_with_magnitudes(magnitude: tuple[int, int]) -> None:
    weight, scale = random(4, 6), random(*magnitude, seed=9).abs()
    sizes = {"w1_a": (4, 2), "w1_b": (2, 6), "w2_a": (4, 2), "w2_b": (2, 6)}
    loha = {f"hada_{part}": random(*size, seed=int(part[1])) for part, size in sizes.items()}
    lokr = {"lokr_w1": random(2, 2), "lokr_w2": random(2, 3)}
    for parts in (loha, lokr):
        plain = weight + read(LINEAR, **parts, alpha=torch.tensor(2.0)).delta()
        module = read(LINEAR, **parts, dora_scale=scale, alpha=torch.tensor(2.0))
        assert modules.kind(module).endswith("with DoRA")
        expected = scale * plain / plain.norm(dim=magnitude.index(1), keepdim=True)
        assert torch.allclose(module.delta(weight), expected - weight, atol=1e-5)


@pytest.mark.parametrize("alpha", [float("inf"), 1e10])
def test_the_alpha_of_a_whole_lokr_is_not_used(alpha: float) -> None:
    """ai-toolkit writes ten milliards, which is infinite in fp16."""
    factors, half = {"lokr_w1": random(2, 2), "lokr_w2": random(2, 3)}, torch.tensor(alpha).half()
    for more in ({"alpha": half}, {"alpha": torch.tensor(2.0), "diff_b": random(4)}):
        assert torch.equal(read(LINEAR, **factors, **more).delta(), torch.kron(*factors.values()))
    tensors = {f"{LINEAR}.{key}": tensor for key, tensor in (factors | {"alpha": half}).items()}
    assert summary.describe(safetensors_reader.parse(save(tensors), "x"))["finite"]
    with pytest.raises(UserError, match=r"alpha has values that are not finite"):
        read(LINEAR, lora_down__weight=random(2, 6), lora_up__weight=random(4, 2), alpha=half)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"oft_blocks": random(2, 3, 4)}, "do not fit together"),
        ({"oft_blocks": random(2, 3, 3), "dora_scale": random(6, 1)}, "unknown kind"),
        ({"diff": random(5, 6), "diff_b": random(4)}, "do not fit together"),
        ({"a1__weight": random(5, 6)}, "lacks its a2"),
        ({"weight": random(5)}, "lacks its on_input"),
    ],
)
def test_what_makes_no_module(parts: dict[str, Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(LINEAR, **parts, alpha=torch.tensor(1.0))


def test_what_a_lora_can_express() -> None:
    full = read(CONVOLUTION, diff=random(5, 6, 3, 3))
    pair = low_rank.factors(full)
    assert torch.allclose((pair.up @ pair.down).float(), full.delta(), atol=1e-5)
    for name, parts, words in (
        (LINEAR, {"oft_blocks": random(2, 3, 3)}, "The change that OFT makes"),
        (LINEAR, {"weight": random(5), "on_input": torch.tensor(0)}, "The change that IA3 makes"),
        (NORM, {"w_norm": random(4)}, "norms or biases"),
        (LINEAR, {"diff": random(5, 6), "diff_b": random(5)}, "norms or biases"),
    ):
        with pytest.raises(UserError, match=words):
            low_rank.factors(read(name, **parts))


def test_each_kind_is_written_as_it_was_read() -> None:
    parts = {f"{LINEAR}.oft_blocks": random(2, 3, 3), f"{LINEAR}.alpha": torch.tensor(0.0)}
    parts |= {f"{CONVOLUTION}.diff": random(5, 6, 3, 3), f"{NORM}.w_norm": random(4), f"{NORM}.b_norm": random(4)}
    file = reader.of_tensors(parts, "x")
    again = read_back(writer.write(file.modules, {}, form="kohya", precision="fp32"))
    assert again.kinds == file.kinds == {"OFT", "full", "norm"}
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in parts.items())
