"""Files and folders as people have them: each is named for what it is, by headers and configs alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.base_models.test_detect import ATTENTION, SD15, SD21, SDXL, UNET, folder, write
from trainer import config
from trainer.base_models import detect
from trainer.errors import UserError

Shapes = dict[str, list[int]]


def without(shapes: Shapes, part: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if part not in key}


def renamed(shapes: Shapes, old: str, new: str) -> Shapes:
    return {key.replace(old, new): shape for key, shape in shapes.items()}


EMA = {"model_ema.decay": [0], "model_ema.diffusion_modelinput_blocks00weight": [320, 4, 3, 3]}
CLIPS = ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.")
SD3 = {
    f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": [4608, 1536],
    f"{UNET}x_embedder.proj.weight": [1536, 16, 2, 2],
    **{f"{clip}text_model.embeddings.position_embedding.weight": [77, 768] for clip in CLIPS},
}
SD35_MEDIUM = SD3 | {
    f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight": [64], f"{UNET}joint_blocks.0.x_block.attn2.qkv.weight": [4608, 1],
}  # fmt: skip
SD35_LARGE = SD3 | {f"{UNET}joint_blocks.37.x_block.attn.ln_q.weight": [64]}
FLUX = {
    f"{UNET}double_blocks.0.img_attn.qkv.weight": [9216, 3072],
    f"{UNET}guidance_in.in_layer.weight": [3072, 256],
    f"{UNET}img_in.weight": [3072, 64],
    f"{CLIPS[0]}text_model.embeddings.position_embedding.weight": [77, 768],
    "text_encoders.t5xxl.transformer.shared.weight": [32128, 4096],
}
SIZES = {
    "SD 3 Medium": (SD3, "Stable Diffusion 3"),
    "SD 3.5 Medium": (SD35_MEDIUM, "Stable Diffusion 3.5 Medium"),
    "SD 3.5 Large": (SD35_LARGE, "Stable Diffusion 3.5 Large"),
}
BASES: dict[str, tuple[Shapes, dict[str, str], tuple[str, str | None, bool]]] = {
    "SD 1.5": (SD15, {}, ("sd15", "epsilon", False)),
    "SD 1.4 with EMA weights": (SD15 | EMA, {}, ("sd15", "epsilon", False)),
    "NAI and Anything V3": (renamed(SD15, ".text_model.", "."), {}, ("sd15", "epsilon", False)),
    "SD 1.5, v-prediction": (SD15 | {"v_pred": [0]}, {}, ("sd15", "v_prediction", False)),
    "SD 1.5, zero terminal SNR alone": (SD15 | {"ztsnr": [0]}, {}, ("sd15", None, True)),
    "SDXL, zero terminal SNR, named": (
        SDXL | {"ztsnr": [0]}, {"modelspec.prediction_type": "v"}, ("sdxl", "v_prediction", True),
    ),
    "SD 2.1": (SD21, {}, ("sd21", None, False)),
    "SDXL": (SDXL, {}, ("sdxl", "epsilon", False)),
    "NoobAI, v-prediction": (SDXL | {"v_pred": [0], "ztsnr": [0]}, {}, ("sdxl", "v_prediction", True)),
    "SD3": (SD3, {}, ("sd3", "flow", False)),
    "FLUX.1 dev": (FLUX, {}, ("flux", "flow", False)),
}  # fmt: skip

REFUSED: dict[str, tuple[Shapes, str]] = {
    "kohya's LoRA": ({"lora_unet_mid_block_x.lora_up.weight": [4, 4]}, "an adapter"),
    "FLUX.1 schnell": ({"double_blocks.0.img_attn.qkv.weight": [9216, 3072]}, "schnell, which is distilled"),
    "FLUX.1 without its text encoders": (without(FLUX, "text_encoders."), "has no text encoder"),
    "FLUX.1 Fill": (FLUX | {f"{UNET}img_in.weight": [3072, 384]}, "made for inpainting or editing"),
    "FLUX, diffusers": ({"single_transformer_blocks.0.attn.to_q.weight": [1, 1]}, "of a FLUX model alone"),
    "a refiner without its first encoder": (without(SDXL, "embedders.0"), "no first text encoder"),
    "SD3 without its text encoders": (without(SD3, "text_encoders."), "has no first text encoder"),
    "SD3 for editing": (SD3 | {f"{UNET}x_embedder.proj.weight": [1536, 32, 2, 2]}, "made for inpainting or editing"),
    "SD3, diffusers": ({"transformer_blocks.0.ff_context.net.0.proj.weight": [1]}, "a Stable Diffusion 3 model alone"),
    "FLUX.2": ({"double_blocks.0.img_attn.qkv.weight": [1], "single_stream_modulation.lin.weight": [1]}, r", FLUX\.2,"),
    "Chroma": ({"double_blocks.0.img_attn.qkv.weight": [1], "distilled_guidance_layer.in_proj.bias": [1]}, ", Chroma,"),
    "Qwen-Image": ({"model.diffusion_model.txt_norm.weight": [3584]}, ", Qwen-Image,"),
    "Sana": ({"blocks.0.cross_attn.q_linear.weight": [1], "blocks.0.cross_attn.kv_linear.weight": [1]}, ", Sana,"),
    "PixArt": ({"blocks.0.cross_attn.kv_linear.weight": [1], "t_block.1.weight": [1]}, ", PixArt,"),
    "Kolors": (SDXL | {f"{UNET}encoder_hid_proj.weight": [2048, 4096]}, ", Kolors,"),
    "LCM, told the guidance": (SD15 | {f"{UNET}time_embed.cond_proj.weight": [320, 256]}, "a latent consistency model"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": [320, 4, 3, 3]}, "a ControlNet"),
    "IP-Adapter": ({"ip_adapter.1.to_k_ip.weight": [320, 768]}, "an IP-Adapter"),
    "embedding": ({"emb_params": [8, 768]}, "an embedding"),
    "VAE": ({"decoder.conv_in.weight": [512, 4, 3, 3]}, "a VAE"),
    "CLIP": ({"text_model.encoder.layers.0.mlp.fc1.weight": [1]}, "a text encoder"),
    "UNet, diffusers": ({"down_blocks.0.resnets.0.conv1.weight": [1]}, "a UNet without"),
    "something else": ({"layers.0.weight": [1]}, "no denoiser of a known family"),
    "refiner": (SDXL | {f"{UNET}label_emb.0.0.weight": [1536, 2560]}, "the refiner of Stable Diffusion XL"),
    "SD 1.5 for inpainting": (SD15 | {f"{UNET}input_blocks.0.0.weight": [320, 9, 3, 3]}, "inpainting or editing"),
    "Playground v2.5": (SDXL | {"edm_mean": [4], "edm_std": [4]}, "EDM model"),
    "pruned of its text encoder": (without(SDXL, "embedders.1"), "has no second text encoder"),
    "a merge of families": (
        SD15 | {f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 1024]}, "cross-attention is 1024 wide",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "metadata", "expected"), BASES.values(), ids=BASES.keys())
def test_base_models(
    tmp_path: Path, shapes: Shapes, metadata: dict[str, str], expected: tuple[str, str | None, bool]
) -> None:
    base = detect.look(write(tmp_path / "base.safetensors", shapes, **metadata))
    assert (base.family, base.prediction_type, base.zero_snr) == expected
    assert base.reason


@pytest.mark.parametrize(("shapes", "title"), SIZES.values(), ids=SIZES.keys())
def test_sizes_of_a_family_are_told_apart(tmp_path: Path, shapes: Shapes, title: str) -> None:
    assert detect.look(write(tmp_path / "base.safetensors", shapes)).title == title
    assert detect.look(write(tmp_path / "plain.safetensors", renamed(shapes, UNET, ""))).title == title


# Names of files, folders and repositories, and in metadata; the clip skip that they suggest.
NAMES: list[tuple[str, dict[str, str], int]] = [
    ("nai.safetensors", {}, 2),
    ("models--Linaqruf--anything-v3.0/snapshots/0123/base.safetensors", {}, 2),
    ("merge.safetensors", {"modelspec.title": "Orange Mix 4"}, 2),
    ("merge.safetensors", {"ss_sd_model_name": "animefull-latest.ckpt"}, 2),
    ("v1-5-pruned-emaonly.safetensors", {}, 1),
    ("renaissance.safetensors", {"modelspec.title": "Renaissance"}, 1),
]


@pytest.mark.parametrize(("name", "metadata", "clip_skip"), NAMES)
def test_names_suggest_a_clip_skip(tmp_path: Path, name: str, metadata: dict[str, str], clip_skip: int) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    assert detect.look(write(file, SD15, **metadata)).clip_skip == clip_skip
    made = config.build({"name": "x", "dataset": "x", "model": {"base": str(file)}})
    assert made.model.clip_skip == clip_skip


def test_a_name_suggests_no_clip_skip_against_the_settings(tmp_path: Path) -> None:
    xl = write(tmp_path / "animagine.safetensors", SDXL)
    assert detect.look(xl).clip_skip == 1
    anime = write(tmp_path / "anything-v3.safetensors", SD15)
    explicit = {"name": "x", "dataset": "x", "model": {"base": str(anime), "clip_skip": 1}}
    assert config.build(explicit).model.clip_skip == 1
    begun = config.build({"name": "x", "dataset": "x", "model": {"base": str(anime)}}).model_dump(mode="json")
    del begun["model"]["clip_skip"]
    assert config.build(begun).model.clip_skip == 1, "a run that began before there was the setting goes on without"
    assert detect.look(folder(tmp_path / "anything-v4", "StableDiffusionPipeline", {"a": 1}, {"b": 1})).clip_skip == 2


# Names of distilled models: kind, steps and guidance that they are tried with; "" for others.
DISTILLED: list[tuple[str, dict[str, str], tuple[str, int, float] | None]] = [
    ("sd_xl_turbo_1.0_fp16.safetensors", {}, ("Turbo", 4, 1.0)),
    ("dreamshaperXL_lightningDPMSDE.safetensors", {}, ("Lightning", 8, 1.0)),
    ("bigLust_v16_hyperDMD2.safetensors", {}, ("DMD2", 4, 1.0)),
    ("dreamshaper_8LCM.safetensors", {}, ("LCM", 8, 1.5)),
    ("models--stabilityai--sdxl-turbo/snapshots/0123/base.safetensors", {}, ("Turbo", 4, 1.0)),
    ("merge.safetensors", {"modelspec.title": "My Lightning merge, 6 steps"}, ("Lightning", 6, 1.0)),
    ("sd_xl_base_1.0.safetensors", {}, None),
    ("hyperrealism_v3.safetensors", {}, None),
    ("mymodel_20000steps.safetensors", {}, None),
    ("alchemist.safetensors", {"modelspec.title": "calcmaster"}, None),
]


@pytest.mark.parametrize(("name", "metadata", "expected"), DISTILLED)
def test_distilled_models_are_known_by_their_names(
    tmp_path: Path, name: str, metadata: dict[str, str], expected: tuple[str, int, float] | None
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = detect.look(write(file, SDXL, **metadata)).few_step
    assert (kind and (kind.title, kind.steps, kind.guidance)) == expected
    preview = config.build({"name": "x", "dataset": "x", "model": {"base": str(file)}}).preview
    usual = config.PreviewConfig()
    assert (preview.steps, preview.guidance) == (expected[1:] if expected else (usual.steps, usual.guidance))


@pytest.mark.parametrize(
    ("name", "unet", "scheduler", "kind"),
    [
        ("sdxl-turbo", {"a": 1}, "EulerAncestralDiscreteScheduler", "Turbo"),
        ("base", {"a": 1}, "LCMScheduler", "LCM"),
        ("base", {"_name_or_path": "/home/x/RealVisXL_Lightning/unet"}, "EulerDiscreteScheduler", ""),
        ("base", {"_name_or_path": "SG161222/RealVisXL_V4.0_Lightning"}, "EulerDiscreteScheduler", "Lightning"),
        ("base", {"a": 1}, "EulerDiscreteScheduler", ""),
    ],
)
def test_distilled_folders_are_known_by_names_and_schedulers(
    tmp_path: Path, name: str, unet: dict[str, Any], scheduler: str, kind: str
) -> None:
    base = folder(tmp_path / name, "StableDiffusionXLPipeline", unet, {"_class_name": scheduler})
    few_step = detect.look(base).few_step
    assert (few_step.title if few_step else "") == kind
    with pytest.raises(UserError, match="one-step model of Lightning"):
        detect.look(write(tmp_path / "sdxl_lightning_1step_x0.safetensors", SDXL))


@pytest.mark.parametrize(("shapes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files(tmp_path: Path, shapes: Shapes, words: str) -> None:
    file = write(tmp_path / "base.safetensors", shapes)
    with pytest.raises(UserError, match=words) as caught:
        detect.look(file)
    assert str(tmp_path) not in str(caught.value)
    assert detect.glance(str(file)) is None


@pytest.mark.parametrize(
    ("pipeline", "unet", "expected"),
    [
        ("StableDiffusionPipeline", {"cross_attention_dim": 1024}, "cross-attention is 1024 wide"),
        ("FluxPipeline", {"in_channels": 64, "guidance_embeds": False}, r"FLUX\.1 schnell, which is distilled"),
        ("QwenImagePipeline", {"in_channels": 64}, ", Qwen-Image,"),
        ("StableDiffusion3Pipeline", {"in_channels": 32}, "made for inpainting or editing"),
        ("LatentConsistencyModelPipeline", {}, "a latent consistency model"),
        ("StableDiffusionXLPipeline", {"time_cond_proj_dim": 256}, "a latent consistency model"),
        ("StableDiffusionPipeline", {"cross_attention_dim": 768, "in_channels": 9}, "inpainting or editing"),
    ],
)
def test_other_folders(tmp_path: Path, pipeline: str, unet: dict[str, Any], expected: str) -> None:
    base = folder(tmp_path / "base", pipeline, unet, {"beta_start": 0.00085})
    with pytest.raises(UserError, match=expected):
        detect.look(base)


def test_a_folder_whose_scheduler_is_unusable(tmp_path: Path) -> None:
    for scheduler, words in (({"prediction_type": "sample"}, "prediction type is 'sample'"), ({}, "UNet or scheduler")):
        base = folder(tmp_path / "base", "StableDiffusionPipeline", {"cross_attention_dim": 768}, scheduler)
        with pytest.raises(UserError, match=words):
            detect.look(base)
