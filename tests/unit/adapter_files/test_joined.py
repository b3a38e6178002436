"""Layers that a transformer's original code joins to one: each part comes back as it was."""

import pytest
import torch

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


def lokr(blocks: int, *, is_plain: bool) -> LoKr:
    """Return a LoKr of blocks of rows; one that is not plain has magnitudes and biases, and a factor in two parts."""
    first, rows = {"lokr_w1": random(blocks, 2)}, 56 // blocks
    if is_plain:
        return LoKr(first | {"lokr_w2": random(rows, 4)}, 1.0)
    second = {"lokr_w2_a": random(rows, 2), "lokr_w2_b": random(2, 4, seed=1)}
    return LoKr(first | second | {"dora_scale": random(56, 1).abs(), "diff_b": random(56)}, 1.0)


def ia3(*shape: int, on_input: float) -> IA3:
    return IA3({"weight": random(*shape), "on_input": torch.tensor(on_input)})


GLORA = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (56, 2), "b2.weight": (2, 8)}
TURNED = {"oft_blocks": random(14, 4, 4), "rescale": random(56, 1, seed=1)}
# Joined layers, the kind of their parts, and how far rounding may lead. LyCORIS and ai-toolkit train those of FLUX.1,
# FLUX.2 and Chroma as one. Of a LoKr, a part has whole blocks of 4 rows, and cuts those of 14.
JOINED: list[tuple[Module, str, float]] = [
    (lokr(14, is_plain=True), "LoKr", 1e-8),
    (lokr(4, is_plain=True), "full", 1e-8),
    (lokr(14, is_plain=False), "LoKr with DoRA", 1e-5),
    (lokr(4, is_plain=False), "DoRA", 1e-5),
    (GLoRA({key: random(*shape, seed=seed) for seed, (key, shape) in enumerate(GLORA.items())}, 1.0), "GLoRA", 1e-6),
    (Oft(TURNED, 0.0), "OFT", 1e-5),
    (Oft(TURNED, 1e-3), "OFT", 1e-5),  # which limits the norm of all blocks together
    (OftV2({"oft_R.weight": random(2, 6)}), "OFTv2", 1e-5),
    (ia3(8, on_input=1.0), "IA3", 1e-5),
    *((ia3(*shape, on_input=0.0), "IA3", 1e-8) for shape in ((56,), (56, 1), (1, 56))),
]


@pytest.mark.parametrize(("whole", "part_kind", "rounding"), JOINED, ids=[part_kind for _, part_kind, _ in JOINED])
def test_parts_change_their_rows_as_the_whole_does(whole: Module, part_kind: str, rounding: float) -> None:
    weight = random(56, 8, seed=9)
    parts = joined.apart(ALL_OF_A_BLOCK, whole, originally=True).values()
    changes = [part.delta(rows) for part, rows in zip(parts, weight.split(list(SIZES.values())), strict=True)]
    assert torch.allclose(torch.cat(changes), whole.delta(weight), atol=rounding)
    assert [len(change) for change in changes] == list(SIZES.values())
    assert {kind(part) for part in parts} == {part_kind}
    if "diff_b" in whole.parts:
        assert torch.equal(torch.cat([part.parts["diff_b"] for part in parts]), whole.parts["diff_b"])
    if kind(whole) == "OFTv2" or whole.parts.get("on_input") == 1:
        assert list(parts) == [whole] * 4, "a change of inputs is that of each part"


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


# Layers of 16 rows. Biases alone, factors of outputs and OFT do not tell their columns.
HALVES = {
    "LoKr": LoKr({"lokr_w1": random(4, 2), "lokr_w2": random(4, 4)}, 1.0),
    "LoKr of one block": LoKr({"lokr_w1": random(1, 2), "lokr_w2": random(16, 4)}, 1.0),
    "OFT": Oft({"oft_blocks": random(4, 4, 4)}, 0.0),
    "IA3": ia3(16, on_input=0.0),
}


@pytest.mark.parametrize("whole", HALVES.values(), ids=HALVES)
def test_halves_change_places_as_those_of_a_lora(whole: Module) -> None:
    """Shift and scale of the last modulation are in the other order in the original code than in diffusers."""
    place, weight = Place("transformer", "norm_out.linear"), random(16, 8, seed=3)
    for family, moved in {"sd3": 8, "z_image": 0}.items():
        (module,) = joined.apart(place, whole, originally=True, family=family).values()  # type: ignore[arg-type]
        assert torch.allclose(module.delta(weight.roll(moved, 0)), whole.delta(weight).roll(moved, 0))


def test_halves_change_places_where_nothing_else_names_the_family() -> None:
    place, whole, biases = Place("transformer", "norm_out.linear"), HALVES["LoKr"], Full({"diff_b": random(16)})
    (module,) = joined.apart(place, whole, originally=True).values()
    assert torch.allclose(module.delta(), whole.delta().roll(8, 0))
    (module,) = joined.apart(place, biases, originally=True, family="sd3").values()
    assert torch.equal(module.parts["diff_b"], random(16).roll(8))


@pytest.mark.parametrize("rows", [3, 8, 55])
def test_rows_that_no_parts_add_up_to_are_not_divided(rows: int) -> None:
    """The parts have 1, 1, 1 and 4 of 7 shares."""
    lora = Lora({"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(rows, 2)}, 2.0)
    lokr = LoKr({"lokr_w1": torch.ones(1, 2), "lokr_w2": torch.ones(rows, 4)}, 1.0)
    assert [joined.apart(ALL_OF_A_BLOCK, whole, originally=True) for whole in (lora, lokr)] == [None, None]
