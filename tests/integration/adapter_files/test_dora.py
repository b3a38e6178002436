"""DoRA files hold what each program's arithmetic turns into the trained effect.

The formulas are those of ComfyUI 618b803d (comfy/weight_adapter/base.py), Forge dfdcbab6 (backend/patcher/lora.py),
A1111 82a973c0 (extensions-builtin/Lora/network.py), InvokeAI 8e71a8a5 (backend/patches/layers/dora_layer.py), SD.Next
431bcc36 (modules/lora/network.py) and LyCORIS f49d30d6 with wd_on_output=False (lycoris/modules/locon.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.integration.families.test_families import load
from tests.integration.training.test_adapter_kinds import disturb
from tests.integration.training.test_train import settings
from trainer import families, runs
from trainer.adapter_files import reader, safetensors_reader, writer
from trainer.errors import UserError
from trainer.families import Family
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


def of_peft(family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a file with PEFT's own DoRA, a magnitude for each output, and the changes that it makes."""
    paths = [path for path, _ in family.denoiser.named_modules() if path.endswith(("to_q", "conv1"))]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=paths, use_dora=True, init_lora_weights=False)
    peft.inject_adapter_in_model(config, family.denoiser)
    tensors, changes = {}, {}
    for path in paths:
        layer: Any = family.denoiser.get_submodule(path)
        magnitude = layer.lora_magnitude_vector["default"].weight
        with torch.no_grad():
            magnitude.mul_(1 + 0.1 * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)))
        name = f"unet.{path}"
        tensors |= {f"{name}.lora_A.weight": layer.lora_A["default"].weight.detach()}
        tensors |= {f"{name}.lora_B.weight": layer.lora_B["default"].weight.detach()}
        tensors |= {f"{name}.lora_magnitude_vector.weight": magnitude.detach()}
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        change = (layer.get_base_layer().weight.detach() - before).flatten(1)
        changes["lora_unet_" + path.replace(".", "_")] = change
        layer.unmerge()
    return tensors, changes


@pytest.mark.parametrize("form", ["PEFT's", "kohya's"])
def test_a_magnitude_for_each_output_is_still_read(family: Family, form: str) -> None:
    """It is in PEFT's files and in those of Limner 0.1."""
    tensors, changes = of_peft(family)
    file = reader.of_file(safetensors_reader.parse(save(tensors), "x"))
    if form == "kohya's":
        data = writer.write(file.modules, {}, form="kohya", precision="fp32")
        file = reader.of_file(safetensors_reader.parse(data, "x"))
        assert {tensor.shape[1] for key, tensor in file.tensors.items() if key.endswith("dora_scale")} == {1}
    assert file.modules.keys() == changes.keys()
    layers = {name: layer for name, layer in families.adapted(family).items() if name in changes}
    for name, change in changes.items():
        weight = layers[name].module.get_base_layer().weight.detach().flatten(1)
        assert float((file.modules[name].delta(weight) - change).norm() / change.norm()) < 1e-4


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
