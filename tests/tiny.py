"""Tiny real models: the real classes with the real module names, made from config in a moment, without any download."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
)

from trainer.base_models import MICRO_FOLDER


def make_sd(folder: Path, seed: int = 0) -> Path:
    """Save a Stable Diffusion 1.x model of about 0.2 million random parameters; epsilon, 64 x 64 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        unet, vae, text_encoder = _unet(), _vae(), CLIPTextModel(_text(tokenizer))
    _save_sd(folder, unet, vae, text_encoder, tokenizer, _scheduler())
    return folder


def make_sd21(folder: Path, objective: str = "epsilon") -> Path:
    """Save a Stable Diffusion 2.x model of about the same size, with linear projections and OpenCLIP's activation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = _tokenizer(pad_token="!")
        unet, vae = _unet(use_linear_projection=True, cross_attention_dim=40), _vae()
        text_encoder = CLIPTextModel(_text(tokenizer, hidden_size=40, hidden_act="gelu"))
    _save_sd(folder, unet, vae, text_encoder, tokenizer, _scheduler(prediction_type=objective))
    return folder


def make_sdxl(folder: Path) -> Path:
    """Save a Stable Diffusion XL model of about 0.6 million random parameters, with as many blocks as the real one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizers = _tokenizer(), _tokenizer(pad_token="!")
        unet = _unet(
            use_linear_projection=True, block_out_channels=(8, 16, 16), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), attention_head_dim=(2, 2, 2), cross_attention_dim=32 + 48,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        )  # fmt: skip
        vae = _vae(scaling_factor=0.13025)
        first = CLIPTextModel(_text(tokenizers[0]))
        second = CLIPTextModelWithProjection(_text(tokenizers[1], hidden_size=48, projection_dim=40, hidden_act="gelu"))
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=unet, scheduler=_scheduler(), add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


def _tokenizer(**changes: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MICRO_FOLDER / "tokenizer", local_files_only=True, **changes)


def _unet(**changes: Any) -> UNet2DConditionModel:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**settings | changes)


def _vae(**changes: Any) -> AutoencoderKL:  # noqa: ANN401 - any settings
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **changes,
    )  # fmt: skip


def _text(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> CLIPTextConfig:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40, "projection_dim": 32,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    return CLIPTextConfig(**settings | changes)


def _scheduler(**changes: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **changes,
    )  # fmt: skip


def _save_sd(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    scheduler: DDIMScheduler,
) -> None:
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
