"""Layers that a transformer's original code joins to one: each part comes back as it was."""

import pytest
import torch
from torch import Tensor

from tests.unit.adapter_files.test_modules import random
from trainer.adapter_files import joined
from trainer.adapter_files.modules import IA3, Full, GLoRA, LoKr, Lora, Module, Oft, OftV2, kind
from trainer.base_models import layer_names
from trainer.base_models.layer_names import Place

BLOCK = "lora_transformer_single_transformer_blocks_0_"
ALL_OF_A_BLOCK = Place("transformer", "single_transformer_blocks.0.to_qkv_mlp")
SIZES = {"attn_to_q": 8, "attn_to_k": 8, "attn_to_v": 8, "proj_mlp": 32}


def adapter(ranks: dict[str, int], alpha: float, *, trained: bool) -> dict[str, Lora]:
    """Return a LoRA of some layers of a block of FLUX with one alpha; one that is not trained has ups of zeros."""
    modules = {}
    for seed, (layer, rank) in enumerate(ranks.items()):
        parts = {"lora_down.weight": random(rank, 8, seed=seed), "lora_up.weight": random(SIZES[layer], rank) * trained}
        modules[BLOCK + layer] = Lora(parts, alpha)
    return modules


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "ranks",
    [
        {"attn_to_q": 4, "attn_to_v": 4},
        {"attn_to_q": 2, "attn_to_k": 8, "attn_to_v": 5, "proj_mlp": 8},
        {"proj_mlp": 3},
    ],
)
def test_parts_of_any_ranks_come_back(ranks: dict[str, int], trained: bool) -> None:
    modules = adapter(ranks, 3.0, trained=trained)
    ((name, whole),) = joined.as_original(modules, "flux").items()
    place = layer_names.read(name).place
    parts = joined.apart(place, whole, originally=True)
    back = {layer_names.kohya(place, "flux"): module for place, module in parts.items()}
    assert back.keys() == modules.keys()
    for name, module in modules.items():
        assert back[name].rank == module.rank
        assert torch.allclose(back[name].delta(), module.delta(), atol=1e-6)


def sliced(whole: Module) -> tuple[Tensor, Tensor, dict[Place, Module]]:
    """The change of a joined layer, those of its parts in their order, and the parts."""
    weight = random(56, 8, seed=9)
    parts = joined.apart(ALL_OF_A_BLOCK, whole, originally=True)
    rows = weight.split(list(SIZES.values()))
    changes = [part.delta(own) for part, own in zip(parts.values(), rows, strict=True)]
    return whole.delta(weight), torch.cat(changes), parts


@pytest.mark.parametrize(
    ("blocks", "alike"),
    [(14, True), (4, False)],  # 4 rows each, of which a part has whole ones; 14 rows each, which a part cuts
)
def test_parts_of_a_lokr_are_its_rows(blocks: int, alike: bool) -> None:
    """LyCORIS and ai-toolkit train the joined layers of FLUX.1, FLUX.2 and Chroma as one."""
    expected, changes, parts = sliced(LoKr({"lokr_w1": random(blocks, 2), "lokr_w2": random(56 // blocks, 4)}, 1.0))
    assert torch.allclose(changes, expected)
    assert [part.delta().shape[0] for part in parts.values()] == list(SIZES.values())
    assert {type(part) for part in parts.values()} == {LoKr if alike else Full}


def test_parts_of_a_glora_see_their_rows_of_the_weight() -> None:
    shapes = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (56, 2), "b2.weight": (2, 8)}
    whole = GLoRA({key: random(*shape, seed=seed) for seed, (key, shape) in enumerate(shapes.items())}, 1.0)
    expected, changes, _ = sliced(whole)
    assert torch.allclose(changes, expected, atol=1e-6)


@pytest.mark.parametrize("blocks", [14, 4])
def test_parts_of_a_lokr_with_magnitudes_of_rows(blocks: int) -> None:
    parts = {"lokr_w1": random(blocks, 2), "lokr_w2_a": random(56 // blocks, 2), "lokr_w2_b": random(2, 4, seed=1)}
    expected, changes, parts_of = sliced(LoKr({**parts, "dora_scale": random(56, 1).abs(), "diff_b": random(56)}, 1.0))
    assert torch.allclose(changes, expected, atol=1e-5)
    assert torch.equal(torch.cat([part.parts["diff_b"] for part in parts_of.values()]), random(56))
    assert {kind(part) for part in parts_of.values()} == {"LoKr with DoRA" if blocks == 14 else "DoRA"}


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_parts_of_an_oft_keep_the_limit_of_all(limit: float) -> None:
    """It limits the norm of all blocks together, which the blocks themselves tell."""
    whole = Oft({"oft_blocks": random(14, 4, 4), "rescale": random(56, 1, seed=1)}, limit)
    expected, changes, _ = sliced(whole)
    assert torch.allclose(changes, expected, atol=1e-5)


def test_a_change_of_inputs_is_that_of_each_part() -> None:
    for whole in (OftV2({"oft_R.weight": random(2, 6)}), IA3({"weight": random(8), "on_input": torch.tensor(1.0)})):
        expected, changes, parts = sliced(whole)
        assert torch.allclose(changes, expected, atol=1e-5)
        assert list(parts.values()) == [whole] * 4


@pytest.mark.parametrize("shape", [(56,), (56, 1), (1, 56)])
def test_factors_of_outputs_are_those_of_each_part(shape: tuple[int, ...]) -> None:
    expected, changes, _ = sliced(IA3({"weight": random(*shape), "on_input": torch.tensor(0.0)}))
    assert torch.allclose(changes, expected)


@pytest.mark.parametrize(
    "whole",
    [
        Oft({"oft_blocks": random(7, 8, 8)}, 0.0),
        Oft({"oft_blocks": random(2, 28, 28)}, 0.0),
        Oft({"oft_blocks": random(2, 14, 4, 4)}, 0.0),
        Lora({"lora_down.weight": random(2, 8), "lora_up.weight": random(56, 2), "dora_scale": random(1, 8)}, 2.0),
    ],
    ids=["whole", "across", "BOFT", "DoRA by input"],
)
def test_what_needs_the_rows_of_other_parts_stays_joined(whole: Module) -> None:
    is_whole = isinstance(whole, Oft) and len(whole.parts["oft_blocks"]) == 7
    assert (joined.apart(ALL_OF_A_BLOCK, whole, originally=True) is None) != is_whole


def test_halves_without_columns_change_places() -> None:
    """Of biases alone, factors of outputs and OFT, the tensors do not tell the columns."""
    place, weight = Place("transformer", "norm_out.linear"), random(16, 8, seed=3)
    for whole in (
        Oft({"oft_blocks": random(4, 4, 4)}, 0.0),
        IA3({"weight": random(16), "on_input": torch.tensor(0.0)}),
    ):
        (module,) = joined.apart(place, whole, originally=True, family="sd3").values()
        assert torch.allclose(module.delta(weight.roll(8, 0)), whole.delta(weight).roll(8, 0), atol=1e-6)
    (module,) = joined.apart(place, Full({"diff_b": random(16)}), originally=True, family="sd3").values()
    assert torch.equal(module.parts["diff_b"], random(16).roll(8))


@pytest.mark.parametrize("blocks", [4, 1])
def test_halves_of_a_lokr_change_places_as_those_of_a_lora(blocks: int) -> None:
    """Shift and scale of the last modulation are in the other order in the original code than in diffusers."""
    whole = LoKr({"lokr_w1": random(blocks, 2), "lokr_w2": random(16 // blocks, 4)}, 1.0)
    (module,) = joined.apart(Place("transformer", "norm_out.linear"), whole, originally=True).values()
    assert torch.allclose(module.delta(), whole.delta().roll(8, 0))
    place = Place("transformer", "norm_out.linear")
    for family, moved in {"sd3": 8, "z_image": 0}.items():
        (module,) = joined.apart(place, whole, originally=True, family=family).values()  # type: ignore[arg-type]
        assert torch.allclose(module.delta(), whole.delta().roll(moved, 0))


@pytest.mark.parametrize("rows", [3, 8, 55])
def test_rows_that_no_parts_add_up_to_are_not_divided(rows: int) -> None:
    """The parts have 1, 1, 1 and 4 of 7 shares."""
    lora = Lora({"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(rows, 2)}, 2.0)
    lokr = LoKr({"lokr_w1": torch.ones(1, 2), "lokr_w2": torch.ones(rows, 4)}, 1.0)
    assert [joined.apart(ALL_OF_A_BLOCK, whole, originally=True) for whole in (lora, lokr)] == [None, None]
