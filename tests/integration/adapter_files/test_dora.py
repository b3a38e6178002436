"""DoRA files hold what each program's arithmetic turns into the trained effect.

The formulas are those of ComfyUI 618b803d (comfy/weight_adapter/base.py), Forge dfdcbab6 (backend/patcher/lora.py),
A1111 82a973c0 (extensions-builtin/Lora/network.py), InvokeAI 8e71a8a5 (backend/patches/layers/dora_layer.py), SD.Next
431bcc36 (modules/lora/network.py) and LyCORIS f49d30d6 with wd_on_output=False (lycoris/modules/locon.py).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.integration.families.test_families import load
from tests.integration.training.test_adapter_kinds import disturb
from tests.integration.training.test_train import settings
from trainer import families, runs
from trainer.adapter_files import reader, writer
from trainer.errors import UserError
from trainer.training import export

EPSILON = torch.finfo(torch.float32).eps


def by_input(weight: Tensor) -> Tensor:
    """[1, in, ...]."""
    dims = [dim for dim in range(weight.dim()) if dim != 1]
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True)


def comfy(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    updated = weight + scale * product
    if magnitude.shape[0] == weight.shape[0]:
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    else:
        norm = by_input(updated)
    return updated * (magnitude / (norm + EPSILON)) - weight


def a1111(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    updated = weight + scale * product
    return updated * (magnitude / by_input(updated)) - weight


def sdnext(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """Its scale is applied last, to the difference, so that it has to be 1."""
    updated = weight + product
    return scale * (updated * (magnitude / by_input(updated)) - weight)


def lycoris(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    updated = weight + scale * product
    return updated * (magnitude / (by_input(updated) + EPSILON)) - weight


PROGRAMS = {"ComfyUI, Forge": comfy, "A1111, InvokeAI": a1111, "SD.Next": sdnext, "LyCORIS": lycoris}


@pytest.mark.parametrize("apply", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_each_program_applies_the_trained_effect(
    character: Path, tiny_sd: Path, apply: Callable[[Tensor, Tensor, float, Tensor], Tensor]
) -> None:
    config = settings(tiny_sd, adapter__dora=True, adapter__targets="conv", training__text_encoder=True)
    run, family = runs.create(config), load(tiny_sd)
    adapter = families.attach(family, config.adapter, text_encoder=True, seed=0)
    disturb(adapter)
    trained = {name: layer.delta() for name, layer in adapter.layers.items()}
    weights = {name: layer.module.get_base_layer().weight.detach() for name, layer in adapter.layers.items()}
    export.write(family, adapter, config, run, ["rin"], 1)
    tensors = reader.read(run.export).tensors
    for name, change in trained.items():
        weight = weights[name]
        down, up = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("down", "up"))
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
        applied = apply(weight, product, scale, tensors[f"{name}.dora_scale"].float()).flatten(1)
        assert float((applied - change).norm() / change.norm()) < 0.002, name


def test_a_magnitude_for_each_input_is_not_for_peft(character: Path, tiny_sd: Path) -> None:
    config = settings(tiny_sd, adapter__dora=True, export__peft=True)
    run, family = runs.create(config), load(tiny_sd)
    adapter = families.attach(family, config.adapter, text_encoder=False, seed=0)
    disturb(adapter)
    export.write(family, adapter, config, run, ["rin"], 1)
    assert any("for each input" in message for message in runs.look(run).state.warnings)
    assert not (run.folder / "peft").exists()
    file = reader.read(run.export)
    assert '"wd_on_output": false' in file.metadata["ss_network_args"]
    assert writer.network(file.modules)["ss_network_args"] == file.metadata["ss_network_args"]
    with pytest.raises(UserError, match="for each output"):
        writer.write(file.modules, {}, form="peft", precision="fp16")
