"""Weights in other files and forms: a VAE of its own, and linear layers in scaled fp8."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import single_file, tiny
from tests.integration.families.test_transformers import answer, load
from tests.integration.training.test_train import finish, finished, losses
from trainer import families
from trainer.adapter_files import reader
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.families.files import vaes, weights
from trainer.rng import generator
from trainer.sampling import sampler

SCALE = 0.13025  # of SDXL


def make_vae(folder: Path, scale: float = 0.18215, seed: int = 7) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny._vae(scaling_factor=scale).save_pretrained(folder)
    return folder


def forms(folder: Path) -> dict[str, Path]:
    original = {key: value.contiguous() for key, value in single_file._vae(folder)}
    below = folder.parent / "files"
    below.mkdir()
    save_file(original, below / "kohya.safetensors")
    save_file({f"first_stage_model.{key}": value for key, value in original.items()}, below / "prefixed.safetensors")
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), below / "diffusers.safetensors")
    return {"folder": folder, **{path.stem: path for path in below.iterdir()}}


def test_a_vae_of_videos_is_read_under_either_names(tmp_path: Path) -> None:
    with tiny.seeded():
        model = AutoencoderKLQwenImage(base_dim=4)
    model.save_pretrained(tmp_path / "vae")
    original = {key: value.contiguous() for key, value in single_file._vae(tmp_path / "vae")}
    save_file(original, tmp_path / "wan.safetensors")
    assert "encoder.conv1.weight" in original
    for path in (tmp_path / "wan.safetensors", tmp_path / "vae" / "diffusion_pytorch_model.safetensors"):
        loaded = vaes.in_file(path, AutoencoderKLQwenImage, tmp_path / "vae", ("vae.",)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_each_form_is_the_same_vae(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "vae", SCALE)
    expected: Any = AutoencoderKL.from_pretrained(vae)
    pixels = torch.rand(1, 3, 64, 64, generator=generator(2)) * 2 - 1
    with torch.no_grad():
        mean = expected.encode(pixels).latent_dist.mean * SCALE
    file = single_file.write(bases["sdxl"], tmp_path / "base.safetensors")
    own = load(file)
    assert not torch.allclose(families.encode_images(own, pixels)[0], mean, atol=1e-3)
    picture = np.asarray(families.decode_latents(own, mean)[0])
    tried = [(bases["sdxl"], path) for path in forms(vae).values()] + [(file, vae)]
    for base, path in tried:
        family = load(base, vae=str(path))
        assert torch.equal(families.encode_images(family, pixels)[0], mean), (base, path)
        assert not np.array_equal(np.asarray(families.decode_latents(family, mean)[0]), picture)


@pytest.mark.slow
def test_a_base_without_a_vae_trains_and_is_tried_out_with_one(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    whole = single_file.write(bases["sd15"], tmp_path / "whole.safetensors")
    base = tmp_path / "pruned.safetensors"
    save_file({key: value for key, value in load_file(whole).items() if "first_stage" not in key}, base)
    vae = make_vae(tmp_path / "vae")
    with pytest.raises(UserError, match=r"'pruned\.safetensors' has no VAE\. Give one under VAE"):
        load(base)
    options: dict[str, Any] = {"training__steps": 2, "preview__every": 2, "export__precision": "fp32"}
    run = finished(base, model__vae=str(vae), **options)
    metadata = reader.read(run.export).metadata
    assert metadata["ss_vae_name"] == "vae"
    assert str(tmp_path) not in str(metadata)
    other = finished(whole, **options)
    assert losses(run) != losses(other)
    assert "ss_vae_name" not in reader.read(other.export).metadata
    request = PictureConfig(
        base=str(base), vae=str(vae), adapters=((str(run.export), 1.0),), prompt="rin", steps=2, out="x.png"
    )
    image = np.asarray(sampler.Sampler().generate(request)).astype(int)
    preview = np.asarray(Image.open(run.folder / "previews" / "000002_0.png")).astype(int)
    assert np.abs(image - preview).max() <= 1
    with pytest.raises(UserError, match="has no VAE"):
        sampler.Sampler().generate(request.model_copy(update={"vae": ""}))
    records = [each.config().record.vae_sha256 for each in (run, other)]
    assert (run.config().model.vae, [len(digest) for digest in records]) == (str(vae.resolve()), [64, 0])
    make_vae(vae, seed=8)
    with pytest.raises(UserError, match="The VAE changed since this run started"):
        finish(run)


def test_weights_that_are_damaged_are_refused(
    tiny_sd: Path, tiny_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = make_vae(tmp_path / "vae")
    weights = vae / "diffusion_pytorch_model.safetensors"
    file = single_file.write(tiny_sd, tmp_path / "whole.safetensors")
    missing = {key: value for key, value in load_file(file).items() if "encoder.norm_out" not in key}
    save_file(missing, tmp_path / "incomplete.safetensors")
    with pytest.raises(UserError, match=r"The VAE 'incomplete\.safetensors' cannot be loaded"):
        load(tiny_sd, vae=str(tmp_path / "incomplete.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="The VAE 'vae' cannot be loaded") as caught:
        load(tiny_sd, vae=str(vae))
    assert str(tmp_path) not in str(caught.value)
    assert ". Check that it is complete" in str(caught.value), "what a library says becomes a sentence"
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", Mock(side_effect=OSError("too small. (os error 1455)")))
    with pytest.raises(UserError, match="There is not enough memory to load 'vae'"):
        load(tiny_sd, vae=str(vae))


ROUNDING = 2.0**-4  # of a value in e4m3, which has three bits of mantissa
LAST = torch.finfo(torch.float8_e4m3fn).max


def quantize(path: Path, name: str, dims: int = 0) -> Path:
    """Quantize the linear layers of a file in place, by a scale each or of each output, under a name of either age."""
    tensors: dict[str, Tensor] = {}
    for key, value in load_file(path).items():
        is_layer = key.endswith(".weight") and value.ndim == 2 and "embed" not in key and "first_stage" not in key
        if not is_layer or "shared" in key:
            tensors[key] = value
            continue
        scale = ((value.abs().amax(dim=1) if dims else value.abs().max()) / LAST).clamp(min=1e-12)
        divided = value / (scale[:, None] if dims else scale)
        layer = key.removesuffix("weight")
        tensors[key], tensors[layer + name] = divided.to(torch.float8_e4m3fn), scale.float()
        tensors[layer + ("scale_input" if name == "scale_weight" else "input_scale")] = torch.tensor(1.0)
        if name == "weight_scale":
            kind = json.dumps({"format": "float8_e4m3fn"}).encode()
            tensors[layer + "comfy_quant"] = torch.tensor(list(kind), dtype=torch.uint8)
    if name == "scale_weight":
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


@pytest.mark.parametrize(
    "case",
    ["sdxl scale_weight", "sd3-5-medium weight_scale", "sd3 apart", "qwen_image three", "krea2 three", "anima three"],
)
def test_a_single_file_is_multiplied_out(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, case: str) -> None:
    """So are text encoders in files of their own."""
    kind, name = case.split()
    plain, path = load(bases[kind]), tmp_path / "base.safetensors"
    if name == "apart":
        single_file.write_apart(bases[kind], path)
        for encoder in ("clip_l", "clip_g", "t5xxl"):
            quantize(tmp_path / f"{encoder}_fp16.safetensors", "scale_weight", dims=1)
    elif name == "three":
        path = quantize(single_file.write_three(bases[kind], tmp_path / "models"), "weight_scale")
        for encoder in (tmp_path / "models" / "text_encoders").iterdir():
            quantize(encoder, "scale_weight")
    else:
        quantize(single_file.write(bases[kind], path), name)
    scaled = load(path)
    assert_same_base(scaled, plain)
    if kind == "sd3-5-medium":
        assert torch.allclose(answer(scaled), answer(plain), atol=0.05 * float(answer(plain).abs().max()))


def test_what_nothing_would_use_or_could_multiply_out_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, tiny_configs: Path
) -> None:
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
    # Scales of blocks, of integers, and any in a folder.
    for tensors in (
        {"x.weight": torch.ones(4, 64).to(torch.float8_e4m3fn), "x.weight_scale": torch.ones(4, 2)},
        {"x.weight": torch.ones(4, 64, dtype=torch.int8), "x.weight_scale": torch.ones(())},
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=r"x\.weight_scale"):
            weights.read_weights(tmp_path / "x.safetensors", torch.float32)
    folder = shutil.copytree(bases["sd15"], tmp_path / "base")
    (file,) = (folder / "unet").glob("*.safetensors")
    quantize(file, "scale_weight")
    with pytest.raises(UserError, match="single files only"):
        load(folder)
