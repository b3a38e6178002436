"""A VAE that is given separately encodes, decodes, is on record, and is what a base without one needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import single_file, tiny
from tests.integration.training.test_train import cases, finish, losses, settings
from trainer import families, runs
from trainer.adapter_files import reader
from trainer.base_models.detect import Base
from trainer.base_models.vae import find
from trainer.config import ModelConfig, PictureConfig
from trainer.errors import UserError
from trainer.families import Family
from trainer.rng import generator
from trainer.sampling import sampler

CPU = torch.device("cpu")
SCALES = {"sd15": 0.18215, "sdxl": 0.13025}


def load(base: Path, vae: Path) -> Family:
    return families.load(ModelConfig(base=str(base), vae=str(vae)), CPU, torch.float32)


def make_vae(folder: Path, family: str = "sd15") -> Path:
    """A VAE with other weights than those of the tiny models."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tiny._vae(scaling_factor=SCALES[family]).save_pretrained(folder)
    return folder


def forms(folder: Path) -> dict[str, Path]:
    """The same VAE as people have it."""
    original = {key: value.contiguous() for key, value in single_file._vae(folder)}
    below = folder.parent / "files"
    below.mkdir()
    save_file(original, below / "kohya.safetensors")
    save_file({f"first_stage_model.{key}": value for key, value in original.items()}, below / "prefixed.safetensors")
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), below / "diffusers.safetensors")
    return {"folder": folder, **{path.stem: path for path in below.iterdir()}}


@pytest.mark.parametrize("kind", cases(["sd15", "sdxl"], pytest.mark.slow, ["sd15"]))
def test_each_form_is_the_same_vae(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str) -> None:
    vae = make_vae(tmp_path / "vae", kind)
    expected: Any = AutoencoderKL.from_pretrained(vae)
    pixels = torch.rand(1, 3, 64, 64, generator=generator(2)) * 2 - 1
    with torch.no_grad():
        mean = expected.encode(pixels).latent_dist.mean * SCALES[kind]
    file = single_file.write(bases[kind], tmp_path / "base.safetensors")
    own = families.load(ModelConfig(base=str(file)), CPU, torch.float32)
    assert not torch.allclose(families.encode_images(own, pixels)[0], mean, atol=1e-3)
    picture = np.asarray(families.decode_latents(own, mean)[0])
    for name, path in forms(vae).items():
        for base in (bases[kind], file):
            family = load(base, path)
            assert torch.equal(families.encode_images(family, pixels)[0], mean), (name, base)
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
        families.load(ModelConfig(base=str(base)), CPU, torch.float32)
    options: dict[str, Any] = {"training__steps": 2, "preview__every": 2, "export__precision": "fp32"}
    run = runs.create(settings(base, model__vae=str(vae), **options))
    finish(run)
    metadata = reader.read(run.export).metadata
    assert metadata["ss_vae_name"] == "vae"
    assert str(tmp_path) not in str(metadata)
    other = runs.create(settings(whole, **options))
    finish(other)
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


@pytest.mark.slow
def test_it_is_on_record_and_another_is_not_resumed_with(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "vae")
    run = runs.create(settings(tiny_sd, model__vae=str(vae), training__steps=2))
    finish(run)
    assert run.config().model.vae == str(vae.resolve())
    assert len(run.config().record.vae_sha256) == 64
    with torch.random.fork_rng():
        torch.manual_seed(8)
        tiny._vae().save_pretrained(vae)
    with pytest.raises(UserError, match="The VAE changed since this run started"):
        finish(run)
    usual = runs.create(settings(tiny_sd, training__steps=2))
    finish(usual)
    assert usual.config().record.vae_sha256 == ""


def test_the_vae_of_a_flux_file_is_found_beside_it(tmp_path: Path) -> None:
    path, base = tmp_path / "flux1-dev.safetensors", Base("flux", "flow", False, "", has_vae=False)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="has no VAE"):
        find(path, base, "")
    halves = {f"{part}.conv_in.weight": torch.zeros(8, 16, 3, 3) for part in ("encoder", "decoder")}
    save_file(halves, tmp_path / "ae.safetensors")
    assert find(path, base, "") == tmp_path / "ae.safetensors"
    save_file({name: value[:, :4].contiguous() for name, value in halves.items()}, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match="4 channels"):
        find(path, base, "")


def test_weights_that_are_damaged_are_refused(tiny_sd: Path, tiny_configs: Path, tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "vae")
    weights = vae / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.weight"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"The weights of 'vae' are damaged: vae\.decoder\.conv_in"):
        load(tiny_sd, vae)
    file = single_file.write(tiny_sd, tmp_path / "whole.safetensors")
    missing = {key: value for key, value in load_file(file).items() if "encoder.norm_out" not in key}
    save_file(missing, tmp_path / "incomplete.safetensors")
    with pytest.raises(UserError, match=r"The VAE 'incomplete\.safetensors' cannot be loaded"):
        load(tiny_sd, tmp_path / "incomplete.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="The VAE 'vae' cannot be loaded") as caught:
        load(tiny_sd, vae)
    assert str(tmp_path) not in str(caught.value)
