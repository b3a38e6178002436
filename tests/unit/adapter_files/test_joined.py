"""Layers that a transformer's original code joins to one: each part comes back as it was."""

import pytest
import torch

from trainer.adapter_files import joined
from trainer.adapter_files.modules import Lora
from trainer.base_models import layer_names

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
