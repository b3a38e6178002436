"""A base without weights has the layers of the loaded one, and an adapter the same tensors on either."""

from pathlib import Path

import pytest
import torch

from tests.tiny import MAKERS
from trainer import families
from trainer.config import ModelConfig, build

CPU = torch.device("cpu")
ADAPTERS = {
    "lora": {"kind": "lora", "rank": 3, "targets": "conv"},
    "dora": {"kind": "lora", "rank": 2, "dora": True},
    "loha": {"kind": "loha", "rank": 2},
    "lokr": {"kind": "lokr", "rank": 2},
    "blocks": {"kind": "lora", "rank": 2, "blocks": ["mid_block", "up_blocks"]},
}


def check(base: str, adapter: dict[str, object], *, text_encoder: bool) -> None:
    settings = build({"name": "rin", "dataset": "rin", "adapter": adapter}).adapter
    model = ModelConfig(base=base)
    outlined = families.outlined(families.outline(model), settings, text_encoder=text_encoder)
    attached = families.attach(families.load(model, CPU, torch.float32), settings, text_encoder=text_encoder, seed=1)
    assert list(outlined) == sorted(attached.layers)
    for name, layer in attached.layers.items():
        tensors = layer.tensors()
        assert {ending: each.shape for ending, each in outlined[name].items()} == {
            ending: each.shape for ending, each in tensors.items()
        }
        assert float(outlined[name]["alpha"]) == float(tensors["alpha"])


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_each_family_has_the_same_layers(kind: str, bases: dict[str, Path]) -> None:
    check(str(bases[kind]), {"rank": 2}, text_encoder=False)


@pytest.mark.parametrize("kind", ["micro", "sd15", "sdxl", "sd3", "flux"])
def test_text_encoders_have_the_same_layers(kind: str, bases: dict[str, Path]) -> None:
    check("micro" if kind == "micro" else str(bases[kind]), {"rank": 2}, text_encoder=True)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_each_kind_has_the_same_tensors(adapter: dict[str, object], bases: dict[str, Path]) -> None:
    check(str(bases["sd15"]), adapter, text_encoder=True)
