"""A VAE that is given separately: found in the forms that people have it in, or named for what is wrong with it."""

import json
from pathlib import Path

import pytest

from tests.unit.base_models.test_detect import QWEN, SD15, SDXL, folder, without, write
from trainer.base_models import detect, vae
from trainer.errors import UserError
from ui.tabs import base_model

ALONE = {"encoder.conv_in.weight": [128, 3, 3, 3], "decoder.conv_in.weight": [512, 4, 3, 3]}
WITHOUT = {key: shape for key, shape in SD15.items() if "first_stage" not in key}


def vae_folder(path: Path, *, weights: bool = True, **settings: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **settings}))
    if weights:
        write(path / "diffusion_pytorch_model.safetensors", ALONE)
    return path


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", SDXL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "vae.pt").write_bytes(b"x")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    lacks = "does not have the encoder and the decoder"
    video = ALONE | {"decoder.conv_in.weight": [384, 16, 3, 3, 3]}
    wide = ALONE | {"decoder.conv_in.weight": [512, 16, 3, 3]}
    for path, words in {
        write(tmp_path / "flux.safetensors", wide): "'flux.safetensors' cannot be used: its latents have 16 channels",
        write(tmp_path / "video.safetensors", video): lacks,
        write(tmp_path / "t5.safetensors", {"text_model.encoder.layers.0.mlp.fc1.weight": [1]}): lacks,
        write(tmp_path / "without.safetensors", WITHOUT): lacks,
        tmp_path / "empty": "no config.json",
        vae_folder(tmp_path / "tiny", _class_name="AutoencoderTiny"): "not an AutoencoderKL",
        vae_folder(tmp_path / "bin", weights=False, scaling_factor=0.13025): "no .safetensors file",
        vae_folder(tmp_path / "flux", latent_channels=16): "16 channels",
        vae_folder(tmp_path / "sd15"): "for another family than Stable Diffusion XL",
        tmp_path / "vae.pt": "not a .safetensors file",
        tmp_path / "cut.safetensors": "damaged",
        tmp_path / "gone": "does not exist",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            vae.find(base, detect.look(base), str(path))
        assert str(tmp_path) not in str(caught.value)
    vae.find(base, detect.look(base), str(vae_folder(tmp_path / "xl", scaling_factor=0.13025)))


def test_a_vae_of_videos_is_told_by_its_dimensions(tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", without(QWEN, "vae."))
    wan = {f"{half}.conv1.weight": [1, 16, 3, 3, 3] for half in ("encoder", "decoder")}
    for path, words in {
        write(tmp_path / "ae.safetensors", ALONE): "does not have the encoder and the decoder of a VAE for Qwen-Image",
        write(tmp_path / "wan22.safetensors", wan | {"decoder.conv1.weight": [1, 48, 3, 3, 3]}): "have 48 channels",
        vae_folder(tmp_path / "wide", _class_name="AutoencoderKLQwenImage", z_dim=48): "have 48 channels",
    }.items():
        with pytest.raises(UserError, match=words):
            vae.find(base, detect.look(base), str(path))
    write(tmp_path / "qwen_image_vae.safetensors", wan)
    assert vae.find(base, detect.look(base), "") == tmp_path / "qwen_image_vae.safetensors"
    own = vae_folder(tmp_path / "vae", _class_name="AutoencoderKLQwenImage", z_dim=16)
    assert vae.find(base, detect.look(base), str(own)) == own


def test_a_base_without_one_is_usable_with_one(home: Path) -> None:
    base = folder(home / "folder", "StableDiffusionPipeline", {"cross_attention_dim": 768}, {"beta_start": 0.1})
    vae_file = write(home / "vae.safetensors", ALONE)
    assert detect.look(write(home / "whole.safetensors", SD15)).has_vae
    for path in (write(home / "file.safetensors", WITHOUT), base):
        assert not detect.look(path).has_vae
        for file, is_usable, words in (
            ("", False, f"The base model '{path.name}' has no VAE."),
            (f'"{vae_file}"', True, "· VAE: vae.safetensors"),
            (str(home / "gone.safetensors"), False, "The VAE 'gone.safetensors' does not exist."),
        ):
            described = base_model.look(str(path), file)
            assert (described.is_usable, words in described.text) == (is_usable, True)
    assert "VAE: vae.safetensors" in base_model.describe("micro", str(vae_file))["text"]
