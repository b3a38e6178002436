"""Layers that a transformer's original code joins to one: each part comes back as it was."""

import pytest
import torch

from trainer.adapter_files import joined
from trainer.adapter_files.modules import Full, GLoRA, LoKr, Lora
from trainer.base_models import layer_names
from trainer.base_models.layer_names import Place

BLOCK = "lora_transformer_single_transformer_blocks_0_"
SIZES = {"attn_to_q": 8, "attn_to_k": 8, "attn_to_v": 8, "proj_mlp": 32}


def adapter(ranks: dict[str, int], alpha: float, *, trained: bool) -> dict[str, Lora]:
    """Return a LoRA of some layers of a block of FLUX with one alpha; one that is not trained has ups of zeros."""
    modules = {}
    for number, (layer, rank) in enumerate(ranks.items()):
        draw = torch.Generator().manual_seed(number)
        up = torch.randn(SIZES[layer], rank, generator=draw) * trained
        down = torch.randn(rank, 8, generator=draw)
        modules[BLOCK + layer] = Lora({"lora_down.weight": down, "lora_up.weight": up}, alpha)
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
    assert place is not None
    parts = joined.apart(place, whole, originally=True)
    assert parts is not None
    back = {layer_names.kohya(place, "flux"): module for place, module in parts.items()}
    assert back.keys() == modules.keys()
    for name, module in modules.items():
        assert back[name].rank == module.rank
        assert torch.allclose(back[name].delta(), module.delta(), atol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "alike"),
    [(14, True), (4, False)],  # 4 rows each, of which a part has whole ones; 14 rows each, which a part cuts
)
def test_parts_of_a_lokr_are_its_rows(blocks: int, alike: bool) -> None:
    """LyCORIS and ai-toolkit train the joined layers of FLUX.1, FLUX.2 and Chroma as one."""
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(blocks, 2, generator=draw), torch.randn(56 // blocks, 4, generator=draw)
    whole = LoKr({"lokr_w1": first, "lokr_w2": second}, 1.0)
    parts = joined.apart(Place("transformer", "single_transformer_blocks.0.to_qkv_mlp"), whole, originally=True)
    assert parts is not None
    assert torch.allclose(torch.cat([part.delta() for part in parts.values()]), whole.delta())
    assert [part.delta().shape[0] for part in parts.values()] == list(SIZES.values())
    assert {type(part) for part in parts.values()} == {LoKr if alike else Full}


def test_parts_of_a_glora_see_their_rows_of_the_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (56, 2), "b2.weight": (2, 8)}
    whole = GLoRA({key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}, 1.0)
    weight = torch.randn(56, 8, generator=draw)
    parts = joined.apart(Place("transformer", "single_transformer_blocks.0.to_qkv_mlp"), whole, originally=True)
    assert parts is not None
    rows = weight.split(list(SIZES.values()))
    changes = [part.delta(own) for part, own in zip(parts.values(), rows, strict=True)]
    assert torch.allclose(torch.cat(changes), whole.delta(weight), atol=1e-6)


@pytest.mark.parametrize("blocks", [4, 1])
def test_halves_of_a_lokr_change_places_as_those_of_a_lora(blocks: int) -> None:
    """Shift and scale of the last modulation are in the other order in the original code than in diffusers."""
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(blocks, 2, generator=draw), torch.randn(16 // blocks, 4, generator=draw)
    whole = LoKr({"lokr_w1": first, "lokr_w2": second}, 1.0)
    ((_, module),) = (joined.apart(Place("transformer", "norm_out.linear"), whole, originally=True) or {}).items()
    assert torch.allclose(module.delta(), whole.delta().roll(8, 0))


@pytest.mark.parametrize("rows", [3, 8, 55])
def test_rows_that_no_parts_add_up_to_are_not_divided(rows: int) -> None:
    """The parts have 1, 1, 1 and 4 of 7 shares."""
    place = Place("transformer", "single_transformer_blocks.0.to_qkv_mlp")
    lora = Lora({"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(rows, 2)}, 2.0)
    lokr = LoKr({"lokr_w1": torch.ones(1, 2), "lokr_w2": torch.ones(rows, 4)}, 1.0)
    assert [joined.apart(place, whole, originally=True) for whole in (lora, lokr)] == [None, None]
