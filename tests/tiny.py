"""Tiny real models: the real classes with the real module names, made from config in a moment, without any download."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from trainer.base_models import CONFIGS, MICRO_FOLDER

_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}  # of both FLUX
_VAE: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (8,) * 4, "norm_num_groups": 4, "sample_size": 64}
_VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
WORDS = 1000  # of Qwen3's and T5's tokenizers, which have 151,643 and 32,100, and take most of the time to load a model


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw random numbers from a seed, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def make_sd(folder: Path, seed: int = 0) -> Path:
    """Save a Stable Diffusion 1.x model of about 0.2 million random parameters; epsilon, 64 x 64 pixels."""
    tokenizer = _tokenizer()
    with seeded(seed):
        parts = {"unet": _unet(), "vae": _vae(), "text_encoder": transformers.CLIPTextModel(_text(tokenizer))}
    return _save_sd(folder, _scheduler(), tokenizer=tokenizer, **parts)


def make_sd21(folder: Path, objective: str = "epsilon") -> Path:
    """Save a Stable Diffusion 2.x model of about the same size, with linear projections and OpenCLIP's activation."""
    tokenizer = _tokenizer(pad_token="!")
    with seeded():
        parts = {"unet": _unet(use_linear_projection=True, cross_attention_dim=40), "vae": _vae()}
        parts["text_encoder"] = transformers.CLIPTextModel(_text(tokenizer, hidden_size=40, hidden_act="gelu"))
    return _save_sd(folder, _scheduler(prediction_type=objective), tokenizer=tokenizer, **parts)


def make_sdxl(folder: Path) -> Path:
    """Save a Stable Diffusion XL model of about 0.6 million random parameters, with as many blocks as the real one."""
    with seeded():
        tokenizers = _tokenizer(), _tokenizer(pad_token="!")
        blocks: dict[str, Any] = {"block_out_channels": (8, 16, 16), "layers_per_block": 2}
        blocks["down_block_types"] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        blocks["up_block_types"] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        attention = {"transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 2, 2)}
        texts = {"use_linear_projection": True, "cross_attention_dim": 32 + 48, "addition_embed_type": "text_time"}
        sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 40 + 6 * 8}
        unet = _unet(**blocks, **attention, **texts, **sizes)
        vae = _vae(scaling_factor=0.13025)
        first = transformers.CLIPTextModel(_text(tokenizers[0]))
        sizes = {"hidden_size": 48, "projection_dim": 40, "hidden_act": "gelu"}
        second = transformers.CLIPTextModelWithProjection(_text(tokenizers[1], **sizes))
    texts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizers[0], "tokenizer_2": tokenizers[1]}
    parts = {"unet": unet, "vae": vae, "scheduler": _scheduler(), **texts}
    diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return folder


def make_sd3(folder: Path, *, t5: bool = True, dual: bool = False) -> Path:
    """Save a Stable Diffusion 3 model, as 3.5 Medium if `dual`, of about 0.1 million parameters beside T5's words."""
    with seeded():
        tokenizers = _tokenizer(), _tokenizer(pad_token="!")
        sizes = {"num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2}
        sizes |= {"caption_projection_dim": 16, "sample_size": 8, "pos_embed_max_size": 16}
        texts = {"joint_attention_dim": 40, "pooled_projection_dim": 40}
        kind = {"dual_attention_layers": (0, 1) if dual else (), "qk_norm": "rms_norm" if dual else None}
        transformer = diffusers.SD3Transformer2DModel(in_channels=16, **sizes, **texts, **kind)
        _wake(transformer)
        first = transformers.CLIPTextModelWithProjection(_text(tokenizers[0], hidden_size=16, projection_dim=16))
        torch.nn.init.eye_(first.text_projection.weight)  # as in the published ones, whose single files leave it out
        sizes = {"hidden_size": 24, "projection_dim": 24, "hidden_act": "gelu"}
        second = transformers.CLIPTextModelWithProjection(_text(tokenizers[1], **sizes))
        third = transformers.T5EncoderModel(_t5()) if t5 else None
        vae = _wide_vae(scaling_factor=1.5305, shift_factor=0.0609)
    parts = {"transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "vae": vae}
    parts |= {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": third}
    parts |= {"tokenizer": tokenizers[0], "tokenizer_2": tokenizers[1], "tokenizer_3": t5_tokenizer() if t5 else None}
    diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def make_flux(folder: Path, *, wide: bool = False) -> Path:
    """Save a FLUX.1 dev model of about 0.1 million random parameters beside T5's words.

    If `wide`, it has one block of each kind in the real width, half a billion parameters, and is saved in bf16.
    """
    with seeded():
        tokenizer = _tokenizer()
        count, heads, axes = (1, 24, (16, 56, 56)) if wide else (2, 2, (4, 6, 6))
        blocks = {"num_layers": count, "num_single_layers": count, "num_attention_heads": heads}
        sizes = {"attention_head_dim": sum(axes), "axes_dims_rope": axes}
        texts = {"joint_attention_dim": 40, "pooled_projection_dim": 16}
        transformer = diffusers.FluxTransformer2DModel(**blocks, **sizes, **texts, guidance_embeds=True)
        _wake(transformer, wide=wide)
        first = transformers.CLIPTextModel(_text(tokenizer, hidden_size=16, projection_dim=16))
        second = transformers.T5EncoderModel(_t5())
        vae = _flux_vae()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC)
    parts = {"text_encoder": first, "tokenizer": tokenizer, "text_encoder_2": second, "tokenizer_2": t5_tokenizer()}
    diffusers.FluxPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_chroma(folder: Path, *, wide: bool = False) -> Path:
    """Save a Chroma model of about 0.1 million random parameters beside T5's words; `wide` as for FLUX.1."""
    with seeded():
        count, heads, axes = (1, 24, (16, 56, 56)) if wide else (2, 2, (4, 6, 6))
        approximator = {"approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 5}
        blocks = {"num_layers": count, "num_single_layers": count, "num_attention_heads": heads}
        sizes = {"in_channels": 64, "attention_head_dim": sum(axes), "joint_attention_dim": 40, "axes_dims_rope": axes}
        transformer = diffusers.ChromaTransformer2DModel(patch_size=1, **blocks, **sizes, **approximator)
        _wake(transformer, wide=wide)
        parts = {"text_encoder": transformers.T5EncoderModel(_t5()), "tokenizer": t5_tokenizer(), "vae": _flux_vae()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    diffusers.ChromaPipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_z_image(folder: Path, *, seed: int = 0) -> Path:
    """Save a Z-Image model of about 0.1 million random parameters beside Qwen3's words."""
    with seeded(seed):
        blocks = {"n_layers": 2, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2}
        sizes = {"dim": 32, "cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [640, 64, 64]}
        transformer = diffusers.ZImageTransformer2DModel(**blocks, **sizes)
        _wake(transformer)
        encoder = transformers.Qwen3Model(_qwen3(3))
        parts = {"text_encoder": encoder, "tokenizer": qwen3_tokenizer(), "vae": _flux_vae()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.ZImagePipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_flux2_klein(folder: Path) -> Path:
    """Save a FLUX.2 klein model of about 0.2 million random parameters beside Qwen3's words."""
    with seeded():
        blocks = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2}
        sizes = {"attention_head_dim": 16, "joint_attention_dim": 48, "axes_dims_rope": (4,) * 4}
        transformer = diffusers.Flux2Transformer2DModel(**blocks, **sizes, guidance_embeds=False)
        with torch.no_grad():  # else blocks change next to nothing
            for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
                transformer.get_submodule(name).linear.weight.mul_(20)
        _wake(transformer)
        parts = {"text_encoder": transformers.Qwen3ForCausalLM(_qwen3(27)), "tokenizer": qwen3_tokenizer()}
        vae = diffusers.AutoencoderKLFlux2(**_VAE | {"latent_channels": 32})
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC)
    diffusers.Flux2KleinPipeline(transformer=transformer, scheduler=scheduler, vae=vae, **parts).save_pretrained(folder)
    return folder


def make_qwen_image(folder: Path) -> Path:
    """Save a Qwen-Image model of about 0.1 million random parameters beside Qwen's words."""
    with seeded():
        blocks = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
        transformer = diffusers.QwenImageTransformer2DModel(joint_attention_dim=16, **blocks)
        with torch.no_grad():  # else blocks change next to nothing
            for block in transformer.transformer_blocks:
                block.img_mod[1].weight.mul_(20)
                block.txt_mod[1].weight.mul_(20)
        _wake(transformer)
        texts = {"vocab_size": len(qwen3_tokenizer()), "hidden_size": 16, "intermediate_size": 24}
        texts |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        texts |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}}
        sees = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
        whole = transformers.Qwen2_5_VLConfig(text_config=texts, vision_config=sees)
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(whole)
        vae = diffusers.AutoencoderKLQwenImage(base_dim=4)
    shift = {"shift": 1.0, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC | shift)
    parts = {"text_encoder": encoder, "tokenizer": qwen3_tokenizer(), "vae": vae}
    diffusers.QwenImagePipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_krea2(folder: Path) -> Path:
    """Save a Krea 2 model of about 0.2 million random parameters beside Qwen's words."""
    with seeded():
        blocks = {"num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        sizes = {"attention_head_dim": 8, "axes_dims_rope": (4, 2, 2), "timestep_embed_dim": 12}
        texts = {"hidden_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24}
        texts = {f"text_{name}": value for name, value in texts.items()}
        transformer = diffusers.Krea2Transformer2DModel(**blocks, **sizes, **texts)
        _wake(transformer)
        reads = {"vocab_size": len(qwen3_tokenizer()), "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
        reads |= {"num_hidden_layers": 36, "num_attention_heads": 2, "num_key_value_heads": 1}
        reads |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]}}
        sees = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
        sees |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        encoder = transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=reads, vision_config=sees))
        vae = diffusers.AutoencoderKLQwenImage(base_dim=4)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC | {"shift": 1.0, "max_image_seq_len": 6400})
    parts = {"text_encoder": encoder, "tokenizer": qwen3_tokenizer(), "vae": vae}
    diffusers.Krea2Pipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_anima(folder: Path) -> Path:
    """Save an Anima model of about 0.2 million random parameters beside Qwen3's and T5's words."""
    with seeded():
        sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "adaln_lora_dim": 8}
        rope = {"rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None}
        transformer = diffusers.CosmosTransformer3DModel(text_embed_dim=20, **sizes, **rope)
        texts = {"source_dim": 16, "target_dim": 20, "model_dim": 20, "num_layers": 2, "num_attention_heads": 2}
        conditioner = diffusers.AnimaTextConditioner(target_vocab_size=len(t5_tokenizer()), **texts)
        parts = {"text_encoder": transformers.Qwen3Model(_qwen3(2)), "tokenizer": qwen3_tokenizer()}
        vae = diffusers.AutoencoderKLQwenImage(base_dim=4)
    parts |= {"text_conditioner": conditioner, "t5_tokenizer": t5_tokenizer(), "transformer": transformer, "vae": vae}
    pipeline = diffusers.AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


# Kinds of base models by name; that of a family is its name, before a hyphen where it has several.
MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd15": make_sd,
    "sd21": make_sd21,
    "sd21-v": partial(make_sd21, objective="v_prediction"),
    "sdxl": make_sdxl,
    "sd3": make_sd3,
    "sd3-5-medium": partial(make_sd3, t5=False, dual=True),
    "flux": make_flux,
    "chroma": make_chroma,
    "z_image": make_z_image,
    "flux2_klein": make_flux2_klein,
    "qwen_image": make_qwen_image,
    "krea2": make_krea2,
    "anima": make_anima,
}


@cache
def qwen3_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Return Qwen3's tokenizer with its first words alone, and its special ones."""
    whole = CONFIGS / "qwen3"
    settings = json.loads((whole / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = settings["added_tokens_decoder"].values()
    settings["added_tokens_decoder"] = dict(enumerate(special, WORDS))
    words = json.loads((whole / "vocab.json").read_text(encoding="utf-8"))
    merges = (whole / "merges.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, "vocab.json").write_text(json.dumps(dict(list(words.items())[:WORDS])), encoding="utf-8")
        # After a title, each merge makes one word of two; the first 256 words are bytes.
        Path(folder, "merges.txt").write_text("\n".join(merges[: 1 + WORDS - 256]), encoding="utf-8")
        return _tokenizer(Path(folder))


@cache
def t5_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Return T5's tokenizer with its first words alone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(CONFIGS / "t5", Path(temporary, "t5"))
        settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        del settings["model"]["vocab"][WORDS:], settings["added_tokens"][3:]
        (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
        return _tokenizer(folder)


def _qwen3(layers: int) -> transformers.Qwen3Config:
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "tie_word_embeddings": True}
    widths = {"vocab_size": len(qwen3_tokenizer()), "hidden_size": 16, "intermediate_size": 24}
    return transformers.Qwen3Config(num_hidden_layers=layers, **widths, **attention)


def _wake(transformer: torch.nn.Module, *, wide: bool = False) -> None:
    """Fill the layers that begin with zeros: modulations and the last one, without which nothing comes out."""
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    if wide:
        transformer.to(torch.bfloat16)


def _t5() -> transformers.T5Config:
    widths = {"vocab_size": len(t5_tokenizer()), "d_model": 40, "d_kv": 8, "d_ff": 48}
    return transformers.T5Config(num_layers=1, num_heads=4, feed_forward_proj="gated-gelu", **widths)


def _flux_vae() -> diffusers.AutoencoderKL:
    """Chroma and Z-Image have it, too."""
    return _wide_vae(scaling_factor=0.3611, shift_factor=0.1159)


def _wide_vae(**changes: Any) -> diffusers.AutoencoderKL:  # noqa: ANN401 - any settings
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **changes)


def _tokenizer(folder: Path = MICRO_FOLDER / "tokenizer", **changes: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **changes)


def _unet(**changes: Any) -> diffusers.UNet2DConditionModel:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32)}
    settings |= {"cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 4}
    settings["down_block_types"] = ("CrossAttnDownBlock2D", "DownBlock2D")
    settings["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(**settings | changes)


def _vae(**changes: Any) -> diffusers.AutoencoderKL:  # noqa: ANN401 - any settings
    return diffusers.AutoencoderKL(**_VAE | changes)


def _text(tokenizer: transformers.PreTrainedTokenizerBase, **changes: Any) -> transformers.CLIPTextConfig:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40}
    settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings["vocab_size"] = len(tokenizer)
    return transformers.CLIPTextConfig(**settings | changes)


def _scheduler(**changes: str) -> diffusers.DDIMScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **betas, **changes)


def _save_sd(folder: Path, scheduler: diffusers.DDIMScheduler, **parts: Any) -> Path:  # noqa: ANN401 - its models
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(scheduler=scheduler, **options, **parts).save_pretrained(folder)
    return folder
