"""What a base model is, from headers and settings alone, for files and folders as people have them.

What cannot be used is refused in words.
"""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from trainer import config
from trainer.base_models import CONFIGS, detect, hub, vae
from trainer.errors import UserError

Shapes = dict[str, list[int]]
UNET = "model.diffusion_model."
ATTENTION = f"{UNET}input_blocks.1.1."
CLIP = "transformer.text_model.embeddings.position_embedding.weight"
COMMON = {f"{UNET}input_blocks.0.0.weight": [320, 4, 3, 3], f"{UNET}out.2.weight": [4, 320, 3, 3]}
COMMON["first_stage_model.decoder.conv_in.weight"] = [512, 4, 3, 3]
SD15 = COMMON | {
    f"{ATTENTION}proj_in.weight": [320, 320, 1, 1],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 768],
    f"cond_stage_model.{CLIP}": [77, 768],
}
SD21 = COMMON | {
    f"{ATTENTION}proj_in.weight": [320, 320],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 1024],
    "cond_stage_model.model.token_embedding.weight": [49408, 1024],
}
SDXL = COMMON | {
    f"{ATTENTION}proj_in.weight": [640, 640],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [640, 2048],
    f"{UNET}label_emb.0.0.weight": [1280, 2816],
    f"conditioner.embedders.0.{CLIP}": [77, 768],
    "conditioner.embedders.1.model.token_embedding.weight": [49408, 1280],
}


def write(path: Path, shapes: Shapes, **metadata: str) -> Path:
    """A safetensors file of zeros that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.timeout(120)
def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    for data in (b"", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a":{}}}'):
        (tmp_path / "damaged.safetensors").write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            detect.look(tmp_path / "damaged.safetensors")
    cut = write(tmp_path / "cut.safetensors", SD15)
    with cut.open("rb+") as opened:
        opened.truncate(cut.stat().st_size - 1)
    many = {f"{number}{'x' * 2000}": [0] for number in range(4500)}
    dense = {str(number): [0] for number in range(20_001)}
    for path, words in (
        (write(tmp_path / "base.ckpt", SD15), r"not a \.safetensors file"),
        (cut, "cut off"),
        (write(tmp_path / "many.safetensors", many), "the header of its file is larger than 8 MB"),
        (write(tmp_path / "dense.safetensors", dense), "its file has more than 20000 tensors"),
    ):
        with pytest.raises(UserError, match=words):
            detect.look(path)


@pytest.mark.parametrize("base", ["x" * 300, "~nobody-of-that-name/base", "a\0b", "mi../cro", "a--b/c", "a/b.git"])
def test_names_that_no_base_can_have(base: str) -> None:
    assert detect.glance(base) is None
    with pytest.raises(UserError, match="does not exist"):
        detect.look(Path(base))
    assert config.build({"name": "x", "dataset": "x", "model": {"base": base}}).training.resolution == 512


def test_a_base_in_the_cache_of_the_hub(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--anna--base"
    shutil.copytree(tiny_sd, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "refs" / "cover.png").write_bytes(b"\xff\xfe")
    for revision in ("", "main", "a" * 40):
        detected = detect.glance("anna/base", revision)
        assert detected.family == "sd15"
    for revision in ("other", "x" * 300, "a\0b", "cover.png"):
        assert detect.glance("anna/base", revision) is None


def folder(path: Path, kind: str, denoiser: dict[str, Any], scheduler: dict[str, Any]) -> Path:
    part = "transformer" if kind.startswith(("StableDiffusion3", "Flux", "Chroma", "ZImage")) else "unet"
    for name, data in (
        ("model_index.json", {"_class_name": kind}),
        (f"{part}/config.json", denoiser),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(data))
    return path


def test_the_preset_follows_the_base(tmp_path: Path) -> None:
    def made(base: Path | str, **model: str) -> tuple[int, float]:
        built = config.build({"name": "x", "dataset": "x", "model": {"base": str(base), **model}})
        return built.training.resolution, built.optimizer.learning_rate

    projects, predicts_v = {"use_linear_projection": True}, {"prediction_type": "v_prediction"}
    sd21 = write(tmp_path / "sd21.safetensors", SD21)
    assert made(write(tmp_path / "sd15.safetensors", SD15)) == (512, 3e-4)
    assert made(sd21) == (768, 2e-4)
    assert made(folder(tmp_path / "v", "StableDiffusionPipeline", projects, predicts_v)) == (768, 2e-4)
    assert made(sd21, objective="epsilon") == (512, 2e-4)
    assert made(write(tmp_path / "sdxl.safetensors", SDXL)) == (1024, 3e-4)
    assert made(write(tmp_path / "sdxl.safetensors", SD15)) == (512, 3e-4), "the file is another one now"
    assert made("not/here") == (512, 3e-4)
    assert made("not/here", family="sdxl") == (1024, 3e-4)


# Numbers of parameters as published, and of the modules that take an adapter.
COUNTS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sd3": {
        "transformer": 2_028_328_000,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "flux": {
        "transformer": 11_901_408_320,
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
    },
    "chroma": {"transformer": 8_899_983_424, "vae": 83_819_683, "text_encoder": 4_762_310_656},
    "flux2_klein": {"transformer": 3_875_544_576, "vae": 84_046_115, "text_encoder": 4_022_468_096},
    "flux2_klein-9b": {"transformer": 9_078_581_248, "text_encoder": 8_190_735_360},
    "qwen_image": {"transformer": 20_430_401_088, "vae": 126_892_531, "text_encoder": 8_292_166_656},
    "krea2": {"transformer": 12_820_073_036, "vae": 126_892_531, "text_encoder": 4_437_815_808},
    "anima": {
        "transformer": 1_956_405_248,
        "vae": 126_892_531,
        "text_encoder": 596_049_920,
        "text_conditioner": 134_663_680,
    },
    "z_image": {"transformer": 6_154_908_736, "vae": 83_819_683, "text_encoder": 4_022_468_096},
    "sd3-5-medium": {"transformer": 2_243_171_520},
    "sd3-5-large": {"transformer": 8_056_627_520},
}


@pytest.mark.parametrize(("family", "counts"), COUNTS.items(), ids=COUNTS.keys())
def test_the_settings_for_single_files_give_the_published_models(family: str, counts: dict[str, int]) -> None:
    import diffusers
    import torch
    import transformers

    index = json.loads(hub.index(CONFIGS / family.partition("-")[0]).read_text())
    for part, count in counts.items():
        library, name = index[part]
        kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
        with torch.device("meta"):
            if library == "diffusers":
                model = kind.from_config(CONFIGS / family / part)
            else:
                model = kind(kind.config_class.from_pretrained(CONFIGS / family / part))
        assert sum(parameter.numel() for parameter in model.parameters()) == count, part


def test_the_tokenizers_are_the_published_ones() -> None:
    from transformers import AutoTokenizer, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip", local_files_only=True, pad_token="!")
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of a cat", padding="max_length", max_length=9).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]
    t5 = AutoTokenizer.from_pretrained(CONFIGS / "t5", local_files_only=True)
    ids = t5("a photo of a cat", padding="max_length", max_length=8).input_ids
    assert ids == [3, 9, 1202, 13, 3, 9, 1712, 1]
    qwen = AutoTokenizer.from_pretrained(CONFIGS / "qwen3", local_files_only=True)
    messages = [{"role": "user", "content": "a photo of a cat"}]
    chat = qwen.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert chat == "<|im_start|>user\na photo of a cat<|im_end|>\n<|im_start|>assistant\n"
    ids = qwen(chat, padding="max_length", max_length=15).input_ids
    assert ids[:3] + ids[8:] == [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151643, 151643]
    assert ids[3:8] == [64, 6548, 315, 264, 8251]


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
    f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight": [64],
    f"{UNET}joint_blocks.0.x_block.attn2.qkv.weight": [4608, 1],
}
SD35_LARGE = SD3 | {f"{UNET}joint_blocks.37.x_block.attn.ln_q.weight": [64]}
FLUX = {
    f"{UNET}double_blocks.0.img_mod.lin.weight": [18432, 3072],
    f"{UNET}guidance_in.in_layer.weight": [3072, 256],
    f"{UNET}img_in.weight": [3072, 64],
    f"{CLIPS[0]}text_model.embeddings.position_embedding.weight": [77, 768],
    "text_encoders.t5xxl.transformer.shared.weight": [32128, 4096],
}
GUIDANCE = f"{UNET}distilled_guidance_layer.in_proj.weight"
ONLY_FLUX = (CLIPS[0], f"{UNET}guidance", f"{UNET}double")
CHROMA = {key: shape for key, shape in FLUX.items() if not key.startswith(ONLY_FLUX)}
CHROMA |= {f"{UNET}double_blocks.0.img_attn.qkv.weight": [9216, 3072], GUIDANCE: [5120, 64]}
Z_IMAGE = {
    f"{UNET}layers.0.adaLN_modulation.0.weight": [15360, 256],
    f"{UNET}layers.0.attention.qkv.weight": [11520, 3840],
    f"{UNET}cap_embedder.0.weight": [2560],
    f"{UNET}cap_pad_token": [1, 3840],
    f"{UNET}x_embedder.weight": [3840, 64],
    "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight": [151936, 2560],
}
KLEIN = {
    f"{UNET}single_stream_modulation.lin.weight": [9216, 3072],
    f"{UNET}double_blocks.0.img_attn.qkv.weight": [9216, 3072],
    f"{UNET}img_in.weight": [3072, 128],
    "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight": [151936, 2560],
}
KLEIN_9B = KLEIN | {f"{UNET}double_blocks.7.img_attn.qkv.weight": [12288, 4096], f"{UNET}img_in.weight": [4096, 128]}
QWEN = {
    f"{UNET}transformer_blocks.0.img_mod.1.weight": [18432, 3072],
    f"{UNET}txt_norm.weight": [3584],
    f"{UNET}img_in.weight": [3072, 64],
    "text_encoders.qwen25_7b.transformer.model.embed_tokens.weight": [152064, 3584],
    "vae.decoder.conv1.weight": [384, 16, 3, 3, 3],
}
KREA = {
    f"{UNET}txtfusion.projector.weight": [1, 12],
    f"{UNET}blocks.0.mod.lin": [36864],
    f"{UNET}first.weight": [6144, 64],
    "text_encoders.qwen3vl_4b.transformer.model.embed_tokens.weight": [151936, 2560],
    "vae.decoder.conv1.weight": [384, 16, 3, 3, 3],
}
ANIMA = {
    f"{UNET}llm_adapter.out_proj.weight": [1024, 1024],
    f"{UNET}blocks.0.self_attn.q_proj.weight": [2048, 2048],
    f"{UNET}x_embedder.proj.1.weight": [2048, 68],
    "text_encoders.qwen3_06b.transformer.model.embed_tokens.weight": [151936, 1024],
    "vae.decoder.conv1.weight": [384, 16, 3, 3, 3],
}
COSMOS = {key.replace(UNET, "net."): shape for key, shape in ANIMA.items() if UNET in key and "llm_adapter" not in key}
LUMINA = renamed(without(Z_IMAGE, "text_encoders."), "adaLN_modulation.0", "adaLN_modulation.1")
BASES: dict[str, tuple[Shapes, dict[str, str], tuple[str, str | None, bool]]] = {
    "SD 1.5": (SD15, {}, ("Stable Diffusion 1.x", "epsilon", False)),
    "SD 1.4 with EMA weights": (SD15 | EMA, {}, ("Stable Diffusion 1.x", "epsilon", False)),
    "NAI and Anything V3": (renamed(SD15, ".text_model.", "."), {}, ("Stable Diffusion 1.x", "epsilon", False)),
    "SD 1.5, v-prediction": (SD15 | {"v_pred": [0]}, {}, ("Stable Diffusion 1.x", "v_prediction", False)),
    "SD 1.5, zero terminal SNR alone": (SD15 | {"ztsnr": [0]}, {}, ("Stable Diffusion 1.x", None, True)),
    "SDXL, zero terminal SNR, named": (
        SDXL | {"ztsnr": [0]},
        {"modelspec.prediction_type": "v"},
        ("Stable Diffusion XL", "v_prediction", True),
    ),
    "SD 2.1": (SD21, {}, ("Stable Diffusion 2.x", None, False)),
    "SDXL": (SDXL, {}, ("Stable Diffusion XL", "epsilon", False)),
    "NoobAI, v-prediction": (SDXL | {"v_pred": [0], "ztsnr": [0]}, {}, ("Stable Diffusion XL", "v_prediction", True)),
    "SD 3": (SD3, {}, ("Stable Diffusion 3", "flow", False)),
    "SD 3.5 Medium": (SD35_MEDIUM, {}, ("Stable Diffusion 3.5 Medium", "flow", False)),
    "SD 3.5 Large": (SD35_LARGE, {}, ("Stable Diffusion 3.5 Large", "flow", False)),
    "FLUX.1 dev": (FLUX, {}, ("FLUX.1", "flow", False)),
    "Chroma": (CHROMA, {}, ("Chroma", "flow", False)),
    "FLUX.2 klein": (KLEIN, {}, ("FLUX.2 klein", "flow", False)),
    "FLUX.2 klein 9B": (renamed(KLEIN_9B, "qwen3_4b", "qwen3_8b"), {}, ("FLUX.2 klein 9B", "flow", False)),
    "Z-Image": (Z_IMAGE, {}, ("Z-Image", "flow", False)),
    "Qwen-Image": (QWEN, {}, ("Qwen-Image", "flow", False)),
    "Krea 2": (KREA, {}, ("Krea 2", "flow", False)),
    "Anima": (ANIMA, {}, ("Anima", "flow", False)),
    "Anima as it is published": (renamed(ANIMA, UNET, "net."), {}, ("Anima", "flow", False)),
}

REFUSED: dict[str, tuple[Shapes, str]] = {
    "kohya's LoRA": ({"lora_unet_mid_block_x.lora_up.weight": [4, 4]}, "an adapter"),
    "FLUX.1 schnell": ({"double_blocks.0.img_mod.lin.weight": [18432, 3072]}, "schnell, which is distilled"),
    "FLUX.1 without its text encoders": (without(FLUX, "text_encoders."), "has no text encoder"),
    "FLUX.1 Fill": (FLUX | {f"{UNET}img_in.weight": [3072, 384]}, "made for inpainting or editing"),
    "FLUX, diffusers": ({"single_transformer_blocks.0.attn.to_q.weight": [1, 1]}, "of a FLUX model alone"),
    "a refiner without its first encoder": (without(SDXL, "embedders.0"), "no first text encoder"),
    "SD3 without its text encoders": (without(SD3, "text_encoders."), "has no first text encoder"),
    "SD3 for editing": (SD3 | {f"{UNET}x_embedder.proj.weight": [1536, 32, 2, 2]}, "made for inpainting or editing"),
    "SD3, diffusers": ({"transformer_blocks.0.ff_context.net.0.proj.weight": [1]}, "a Stable Diffusion 3 model alone"),
    "FLUX.2 dev": (KLEIN | {f"{UNET}single_blocks.47.linear1.weight": [55296, 6144]}, r", FLUX\.2 dev,"),
    "FLUX.2 klein 9B with the smaller Qwen3": (KLEIN_9B, r"has no Qwen3\. Put its file, qwen_3_8b\.safetensors"),
    "Chroma without T5": (without(CHROMA, "text_encoders."), "looks like Chroma, but has no T5"),
    "Chroma Radiance": (CHROMA | {f"{UNET}nerf_blocks.0.norm.scale": [64]}, ", Chroma Radiance,"),
    "a FLUX that is neither": (without(CHROMA, GUIDANCE), "a FLUX model that cannot be trained here"),
    "Z-Image Omni": (Z_IMAGE | {f"{UNET}siglip_embedder.0.weight": [1152]}, ", Z-Image Omni,"),
    "Qwen-Image without Qwen2.5-VL": (without(QWEN, "text_encoders."), r"has no Qwen2\.5-VL\. Put its file, qwen_2"),
    "Qwen-Image-Edit 2511": (QWEN | {"__index_timestep_zero__": [0]}, ", Qwen-Image-Edit,"),
    "Qwen-Image-Layered": (
        QWEN | {f"{UNET}time_text_embed.addition_t_embedding.weight": [2, 3072]},
        ", Qwen-Image-Layered,",
    ),
    "Qwen-Image 2.1": (QWEN | {f"{UNET}txt_in.text_norm.weight": [1]}, r", Qwen-Image 2\.1,"),
    "Krea 2 without Qwen3-VL": (without(KREA, "text_encoders."), r"has no Qwen3-VL\. Put its file, qwen3vl_4b"),
    "Krea 2 for editing": (KREA | {f"{UNET}first.weight": [6144, 128]}, "made for inpainting or editing"),
    "Anima without Qwen3": (without(ANIMA, "text_encoders."), r"has no Qwen3\. Put its file, qwen_3_06b"),
    "Anima for editing": (ANIMA | {f"{UNET}x_embedder.proj.1.weight": [2048, 136]}, "made for inpainting or editing"),
    "Cosmos": (COSMOS, ", Cosmos,"),
    "Lumina 2": (LUMINA, ", Lumina 2,"),
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
        SD15 | {f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 1024]},
        "cross-attention is 1024 wide",
    ),
}


@pytest.mark.parametrize(("shapes", "metadata", "expected"), BASES.values(), ids=BASES.keys())
def test_base_models(
    tmp_path: Path, shapes: Shapes, metadata: dict[str, str], expected: tuple[str, str | None, bool]
) -> None:
    forms = [shapes, renamed(shapes, UNET, "")] if expected[1] == "flow" else [shapes]
    for form in forms:
        base = detect.look(write(tmp_path / "base.safetensors", form, **metadata))
        assert (base.title, base.prediction_type, base.zero_snr) == expected
        assert base.reason


@pytest.mark.parametrize("name", ["diffusion_models/flux.safetensors", "unet/own/flux.safetensors"])
def test_parts_are_where_comfyui_has_them(tmp_path: Path, name: str) -> None:
    """A diffusion model's text encoders and VAE are in folders beside that of such models."""
    base, models = tmp_path / "models" / name, tmp_path / "models"
    for folder in (base.parent, models / "text_encoders", models / "vae"):
        folder.mkdir(parents=True)
    write(base, without(FLUX, "text_encoders."))
    with pytest.raises(UserError, match=r"has no text encoder.*clip_l\.safetensors, into the same folder"):
        detect.look(base)
    encoders = [write(models / "text_encoders" / f"{part}.safetensors", {"x": [1]}) for part in ("clip_l", "t5xxl")]
    halves = {f"{part}.conv_in.weight": [8, 16, 3, 3] for part in ("encoder", "decoder")}
    own = write(models / "vae" / "ae.safetensors", halves)
    assert vae.find(base, detect.look(base), "") == own
    assert [detect.find_beside(base, part) for part in ("clip_l", "t5xxl")] == encoders


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
    """Only to Stable Diffusion 1.x, not against the settings, and to no run that began before there was the setting."""

    def made(**model: object) -> config.TrainConfig:
        return config.build({"name": "x", "dataset": "x", "model": {"base": str(file), **model}})

    file = write(in_folder(tmp_path / name), SD15, **metadata)
    assert detect.look(file).clip_skip == made().model.clip_skip == clip_skip
    assert made(clip_skip=1).model.clip_skip == 1
    begun = made().model_dump(mode="json")
    del begun["model"]["clip_skip"]
    assert config.build(begun).model.clip_skip == 1
    assert detect.look(write(file, SDXL, **metadata)).clip_skip == 1


USUAL = ("", config.PreviewConfig().steps, config.PreviewConfig().guidance)
# Names of distilled models and others: kind, "" of others, and the steps and guidance that they are tried with. Those
# of Z-Image and FLUX.2 klein are as their model cards say; that of Z-Image counts guidance from 0.
DISTILLED: list[tuple[str, Shapes, dict[str, str], tuple[str, int, float]]] = [
    ("sd_xl_turbo_1.0_fp16", SDXL, {}, ("Turbo", 4, 1.0)),
    ("dreamshaperXL_lightningDPMSDE", SDXL, {}, ("Lightning", 8, 1.0)),
    ("bigLust_v16_hyperDMD2", SDXL, {}, ("DMD2", 4, 1.0)),
    ("dreamshaper_8LCM", SDXL, {}, ("LCM", 8, 1.5)),
    ("models--stabilityai--sdxl-turbo/snapshots/0123/base", SDXL, {}, ("Turbo", 4, 1.0)),
    ("merge", SDXL, {"modelspec.title": "My Lightning merge, 6 steps"}, ("Lightning", 6, 1.0)),
    ("sd_xl_base_1.0", SDXL, {}, USUAL),
    ("hyperrealism_v3", SDXL, {}, USUAL),
    ("mymodel_20000steps", SDXL, {}, USUAL),
    ("alchemist", SDXL, {"modelspec.title": "calcmaster"}, USUAL),
    ("z_image_turbo_bf16", Z_IMAGE, {}, ("Turbo", 9, 1.0)),
    ("z_image_turbo_4steps", Z_IMAGE, {}, ("Turbo", 4, 1.0)),
    ("z_image_bf16", Z_IMAGE, {}, ("", 50, 5.0)),
    ("flux-2-klein-4b-fp8", KLEIN, {}, ("FLUX.2 klein", 4, 1.0)),
    ("flux-2-klein-base-4b", KLEIN, {}, ("", 50, 4.0)),
    ("a merge", KLEIN, {}, ("", 50, 4.0)),
]


def title_of(base: Path) -> str:
    """Return the kind of distillation of a base, "" of others."""
    few_step = detect.look(base).few_step
    return few_step.title if few_step else ""


def in_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(("name", "shapes", "metadata", "expected"), DISTILLED)
def test_distilled_models_are_known_by_their_names(
    tmp_path: Path, name: str, shapes: Shapes, metadata: dict[str, str], expected: tuple[str, int, float]
) -> None:
    file = write(in_folder(tmp_path / f"{name}.safetensors"), shapes, **metadata)
    preview = config.build({"name": "x", "dataset": "x", "model": {"base": str(file)}}).preview
    assert (title_of(file), preview.steps, preview.guidance) == expected


def test_a_model_of_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one-step model of Lightning"):
        detect.look(write(tmp_path / "sdxl_lightning_1step_x0.safetensors", SDXL))


@pytest.mark.parametrize("is_distilled", [True, False])
def test_a_folder_may_say_itself_that_it_is_distilled(tmp_path: Path, is_distilled: bool) -> None:
    base = folder(tmp_path / "flux-2-klein", "Flux2KleinPipeline", {"in_channels": 128, "num_layers": 8}, {"a": 1})
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": is_distilled}
    (base / "model_index.json").write_text(json.dumps(index))
    assert (bool(title_of(base)), detect.look(base).title) == (is_distilled, "FLUX.2 klein 9B")


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
    assert title_of(folder(tmp_path / name, "StableDiffusionXLPipeline", unet, {"_class_name": scheduler})) == kind


@pytest.mark.parametrize(("shapes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files(tmp_path: Path, shapes: Shapes, words: str) -> None:
    file = write(tmp_path / "base.safetensors", shapes)
    with pytest.raises(UserError, match=words) as caught:
        detect.look(file)
    assert str(tmp_path) not in str(caught.value)
    assert detect.glance(str(file)) is None


@pytest.mark.parametrize("name", ["qwen_image_edit_2509_fp8", "Qwen-Image-Edit-v1", "z_image_2512_bf16"])
def test_models_for_edits_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    """They have the tensors of models that generate."""
    file = write(tmp_path / f"{name}.safetensors", Z_IMAGE)
    assert (detect.glance(str(file)) is None) == ("edit" in name.lower())


@pytest.mark.parametrize(
    ("pipeline", "unet", "expected"),
    [
        ("StableDiffusionPipeline", {"cross_attention_dim": 1024}, "cross-attention is 1024 wide"),
        ("FluxPipeline", {"in_channels": 64, "guidance_embeds": False}, r"FLUX\.1 schnell, which is distilled"),
        ("Flux2Pipeline", {"in_channels": 128}, r", FLUX\.2 dev,"),
        ("QwenImageEditPlusPipeline", {"in_channels": 64}, ", Qwen-Image-Edit,"),
        ("QwenImageLayeredPipeline", {"in_channels": 64}, ", Qwen-Image-Layered,"),
        ("ZImageOmniPipeline", {"in_channels": 16}, ", Z-Image Omni,"),
        ("ZImagePipeline", {"in_channels": 33}, "made for inpainting or editing"),
        ("CosmosTextToWorldPipeline", {"in_channels": 16}, ", Cosmos,"),
        ("LatentConsistencyModelPipeline", {}, "a latent consistency model"),
        ("StableDiffusionXLPipeline", {"time_cond_proj_dim": 256}, "a latent consistency model"),
        ("StableDiffusionPipeline", {"cross_attention_dim": 768, "in_channels": 9}, "inpainting or editing"),
    ],
)
def test_other_folders(tmp_path: Path, pipeline: str, unet: dict[str, Any], expected: str) -> None:
    base = folder(tmp_path / "base", pipeline, unet, {"beta_start": 0.00085})
    with pytest.raises(UserError, match=expected):
        detect.look(base)
    for scheduler, words in (({"prediction_type": "sample"}, "prediction type is 'sample'"), ({}, "UNet or scheduler")):
        folder(base, "StableDiffusionPipeline", {"cross_attention_dim": 768}, scheduler)
        with pytest.raises(UserError, match=words):
            detect.look(base)
