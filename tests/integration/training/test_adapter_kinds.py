"""Every kind of adapter on a tiny real model: it starts as nothing, it learns, and its file does what it did."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.families.models import answer
from tests.integration.training.test_train import attached, cases, disturb, finished, settings
from trainer import families, runs
from trainer.adapter_files import reader
from trainer.errors import UserError
from trainer.families import Family
from trainer.rng import seed_dropout

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "attention": {"adapter__targets": "attention"},
    "locon": {"adapter__targets": "conv"},
    "up blocks": {"adapter__blocks": ["up_blocks"]},
    "rslora": {"adapter__rslora": True},
    "dora": {"adapter__dora": True},
    "dora of convolutions": {"adapter__dora": True, "adapter__targets": "conv"},
    "loha": {"adapter__kind": "loha", "adapter__rank": 4, "adapter__targets": "conv"},
    "lokr": {"adapter__kind": "lokr", "adapter__rank": 2, "adapter__targets": "conv", "adapter__factor": 4},
    "full lokr": {"adapter__kind": "lokr", "adapter__rank": 64, "adapter__targets": "conv"},
}


@pytest.mark.parametrize(("kind", "text_encoder"), [("locon", True), ("dora", True), ("loha", False), ("lokr", True)])
def test_the_file_does_to_the_weights_what_the_adapter_does(
    family: Family, tiny_sd: Path, tmp_path: Path, kind: str, text_encoder: bool
) -> None:
    base = answer(family)
    adapter = attached(family, tiny_sd, text_encoder=text_encoder, **KINDS[kind])
    adapter.train(False)
    assert torch.allclose(answer(family), base, atol=1e-5), "a fresh adapter changes nothing"
    disturb(adapter)
    trained = answer(family)
    assert (trained - base).abs().max() > 1e-3
    with adapter.off():
        assert torch.equal(answer(family), base)
    assert torch.equal(answer(family), trained)
    assert all(parameter.requires_grad for parameter in adapter.parameters())

    save_file(adapter.tensors(), tmp_path / "a.safetensors")
    file = reader.read(tmp_path / "a.safetensors")
    adapter.detach()
    assert torch.equal(answer(family), base)
    with families.patched(family, [(file, 1.0)]):
        assert torch.allclose(answer(family), trained, rtol=1e-4, atol=1e-4 * float(trained.abs().max()))
    with families.patched(family, [(file, 0.0)]):
        assert torch.equal(answer(family), base)
    assert torch.equal(answer(family), base)
    assert any(name.startswith("lora_te_") for name in file.modules) == text_encoder


COMMON = ("lora", "loha")
RARE = sorted(KINDS.keys() - {*COMMON})


@pytest.mark.parametrize("kind", cases(COMMON, pytest.mark.slow, ["lora"]) + cases(RARE, pytest.mark.nightly, []))
def test_each_kind_learns_and_is_exported(character: Path, tiny_sd: Path, kind: str) -> None:
    run = finished(tiny_sd, training__steps=20, **KINDS[kind])
    curve = [loss for _, loss in sorted(runs.look(run).state.losses.items())]
    assert sum(curve[-8:]) < 0.995 * sum(curve[:8])
    file = reader.read(run.export)
    warnings = runs.look(run).state.warnings
    assert any("diffusers does not apply" in warning for warning in warnings) != reader.readable_by_diffusers(file)


def test_which_layers_are_adapted(family: Family, tiny_sd: Path) -> None:
    def names(**options: Any) -> set[str]:  # noqa: ANN401 - any settings
        adapter = attached(family, tiny_sd, text_encoder=False, **options)
        adapter.detach()
        return set(adapter.layers)

    usual, attention, conv = names(), names(adapter__targets="attention"), names(adapter__targets="conv")
    assert attention < usual < conv
    assert {name for name in usual - attention} == {name for name in usual if "_ff_net_" in name}
    assert any(name.endswith("_resnets_0_conv1") for name in conv)
    assert any(name.endswith("_downsamplers_0_conv") for name in conv)
    up = names(adapter__blocks=["up_blocks", "mid_block"])
    assert up == {name for name in usual if "down_blocks" not in name}
    with pytest.raises(UserError, match="has any of these in its name: upblocks"):
        names(adapter__blocks=["upblocks"])


def test_ranks_alphas_and_rates_of_layers(family: Family, tiny_sd: Path) -> None:
    """Blocks have ranks of their own; rsLoRA's alpha is as programs read it; the up matrices have another rate."""
    adapter = attached(family, tiny_sd, adapter__ranks=["up_blocks = 8", "attn2 = 2", "self_attn = 1"])
    for name, layer in adapter.layers.items():
        rank = 1 if "self_attn" in name else 2 if "attn2" in name else 8 if "up_blocks" in name else 4
        assert layer.trained()["down"].shape[0] == rank, name
    adapter.detach()
    adapter = attached(family, tiny_sd, adapter__rslora=True)  # alpha 2, rank 4: scale 2 / sqrt(4) = 1 = alpha' / 4
    assert {float(value) for key, value in adapter.tensors().items() if key.endswith("alpha")} == {4.0}
    assert settings(tiny_sd, adapter__rslora=True).adapter.file_alpha == 4.0
    adapter.detach()
    adapter = attached(family, tiny_sd, adapter__lora_plus_ratio=4.0)
    groups = {group["factor"]: group["params"] for group in adapter.groups(0.5)}
    assert (set(groups), sum(map(len, groups.values()))) == ({1.0, 4.0, 0.5, 2.0}, len(list(adapter.parameters())))
    layer = adapter.layers["lora_te_text_model_encoder_layers_0_self_attn_q_proj"].trained()
    assert any(layer["up"] is parameter for parameter in groups[2.0])
    assert any(layer["down"] is parameter for parameter in groups[0.5])


@pytest.mark.parametrize("name", ["adapter__rank_dropout", "adapter__dropout"])
def test_dropout_is_drawn_from_its_place_and_only_in_training(family: Family, tiny_sd: Path, name: str) -> None:
    adapter = attached(family, tiny_sd, adapter__targets="conv", **{name: 0.5})
    disturb(adapter)

    def drawn(*place: int) -> torch.Tensor:
        seed_dropout(*place)
        return answer(family)

    assert torch.equal(drawn(1, 2), drawn(1, 2))
    assert not torch.equal(drawn(1, 2), drawn(1, 3))
    adapter.train(False)
    assert torch.equal(drawn(1, 2), drawn(1, 3))
