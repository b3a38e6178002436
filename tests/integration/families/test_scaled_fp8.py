"""Scaled fp8, as ComfyUI writes it: the base that was quantized, within the rounding of fp8, and no other one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import single_file
from tests.integration.families.test_transformers import answer, load
from trainer.errors import UserError
from trainer.families import weights

Scale = Callable[[str, Tensor], Tensor]
ROUNDING = 2.0**-4  # of a value in e4m3, which has three bits of mantissa
LAST = torch.finfo(torch.float8_e4m3fn).max


def per_tensor(_key: str, weight: Tensor) -> Tensor:
    return weight.abs().max() / LAST


def per_output(_key: str, weight: Tensor) -> Tensor:
    return weight.abs().amax(dim=1) / LAST


def quantize(path: Path, name: str, scale_of: Scale = per_tensor, marks: bool = True) -> Path:
    """Quantize the linear layers of a file in place, each by a scale of its own, under a name of either age."""
    tensors: dict[str, Tensor] = {}
    for key, value in load_file(path).items():
        is_layer = key.endswith(".weight") and value.ndim == 2 and "embed" not in key and "first_stage" not in key
        if not is_layer or "shared" in key:
            tensors[key] = value
            continue
        scale = scale_of(key, value).clamp(min=1e-12)
        divided = value / (scale if scale.ndim == 0 else scale[:, None])
        layer = key.removesuffix("weight")
        tensors[key], tensors[layer + name] = divided.to(torch.float8_e4m3fn), scale.float()
        if marks:
            tensors[layer + ("scale_input" if name == "scale_weight" else "input_scale")] = torch.tensor(1.0)
        if marks and name == "weight_scale":
            kind = json.dumps({"format": "float8_e4m3fn"}).encode()
            tensors[layer + "comfy_quant"] = torch.tensor(list(kind), dtype=torch.uint8)
    if marks and name == "scale_weight":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, path)
    return path


def parameters(family: object) -> dict[str, Tensor]:
    all_of_it = dict(family.denoiser.named_parameters())
    for name, encoder in family.encoders().items():
        all_of_it |= {f"{name}.{key}": value for key, value in encoder.named_parameters()}
    return all_of_it


def assert_same_base(scaled: object, plain: object) -> None:
    ours, theirs = parameters(scaled), parameters(plain)
    assert ours.keys() == theirs.keys()
    changed = 0
    for key, value in theirs.items():
        difference = (ours[key].float() - value.float()).abs()
        assert (difference <= ROUNDING * value.float().abs() + 2e-3 * value.float().abs().max()).all(), key
        changed += int(difference.any())
    assert changed > 10, "something was quantized"


@pytest.mark.parametrize("case", ["sd15 old", "sd21 new", "sdxl new", "sd3 old", "sd3-5-medium new"])
def test_a_single_file_is_multiplied_out(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, case: str) -> None:
    kind, age = case.split()
    name = "scale_weight" if age == "old" else "weight_scale"
    plain, file = load(bases[kind]), single_file.write(bases[kind], tmp_path / "base.safetensors")
    scaled = load(quantize(file, name))
    assert_same_base(scaled, plain)
    if kind not in ("sd15", "sd21", "sdxl"):
        assert torch.allclose(answer(scaled), answer(plain), atol=0.05 * float(answer(plain).abs().max()))


def test_text_encoders_of_their_own_are_multiplied_out(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    file = single_file.write_apart(bases["sd3"], tmp_path / "base.safetensors")
    for encoder in ("clip_l", "clip_g", "t5xxl"):
        quantize(tmp_path / f"{encoder}_fp16.safetensors", "scale_weight", per_output)
    assert_same_base(load(file), load(bases["sd3"]))


def test_what_nothing_would_use_is_refused_by_name(bases: dict[str, Path], tmp_path: Path, tiny_configs: Path) -> None:
    file = single_file.write(bases["sd15"], tmp_path / "base.safetensors")
    tensors = load_file(file)
    for key, tensor in {
        "model.diffusion_model.out.2.weight_scale_2": torch.ones(1),
        "model.diffusion_model.out.2.qweight": torch.ones(4, dtype=torch.int32),
        "model.diffusion_model.other.scale_weight": torch.ones(()),
        "model.diffusion_model.control.weight": torch.ones(5, 7),
        "cond_stage_model.transformer.text_model.q.packed": torch.ones(4, dtype=torch.uint8),
    }.items():
        save_file(tensors | {key: tensor}, file)
        with pytest.raises(UserError, match=".".join(key.split(".")[-2:])):
            load(file)


def test_blocks_of_scales_and_integers_are_refused(tmp_path: Path) -> None:
    for tensors in (
        {"x.weight": torch.ones(4, 64).to(torch.float8_e4m3fn), "x.weight_scale": torch.ones(4, 2)},
        {"x.weight": torch.ones(4, 64, dtype=torch.int8), "x.weight_scale": torch.ones(())},
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=r"x\.weight_scale"):
            weights.read(tmp_path / "x.safetensors", torch.float32)


def test_scales_in_a_folder_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["sd15"], tmp_path / "base")
    (file,) = (folder / "unet").glob("*.safetensors")
    quantize(file, "scale_weight")
    with pytest.raises(UserError, match="single files only"):
        load(folder)
