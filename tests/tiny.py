"""Tiny real models: the real classes with the real module names, made from config in a moment, without any download."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from trainer.base_models import CONFIGS, MICRO_FOLDER

_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}  # of both FLUX
_VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 64,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


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
        unet, vae, text_encoder = _unet(), _vae(), transformers.CLIPTextModel(_text(tokenizer))
    return _save_sd(folder, _scheduler(), unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)


def make_sd21(folder: Path, objective: str = "epsilon") -> Path:
    """Save a Stable Diffusion 2.x model of about the same size, with linear projections and OpenCLIP's activation."""
    tokenizer, scheduler = _tokenizer(pad_token="!"), _scheduler(prediction_type=objective)
    with seeded():
        unet, vae = _unet(use_linear_projection=True, cross_attention_dim=40), _vae()
        text_encoder = transformers.CLIPTextModel(_text(tokenizer, hidden_size=40, hidden_act="gelu"))
    return _save_sd(folder, scheduler, unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)


def make_sdxl(folder: Path) -> Path:
    """Save a Stable Diffusion XL model of about 0.6 million random parameters, with as many blocks as the real one."""
    with seeded():
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
        first = transformers.CLIPTextModel(_text(tokenizers[0]))
        second = transformers.CLIPTextModelWithProjection(
            _text(tokenizers[1], hidden_size=48, projection_dim=40, hidden_act="gelu")
        )
    diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=unet, scheduler=_scheduler(), add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


def make_sd3(folder: Path, *, t5: bool = True, dual: bool = False, heads: int = 0) -> Path:
    """Save a Stable Diffusion 3 model, as 3.5 Medium if `dual`, of about 0.1 million parameters beside T5's words.

    With a number of `heads` it has two blocks of the width of a real model that has so many, and is saved in bf16.
    """
    with seeded():
        tokenizers = _tokenizer(), _tokenizer(pad_token="!")
        layers, head = (2, 64) if heads else (3, 8)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=head,
            num_attention_heads=heads or 2, joint_attention_dim=40, caption_projection_dim=(heads or 2) * head,
            pooled_projection_dim=40, pos_embed_max_size=16,
            dual_attention_layers=(0, 1) if dual else (), qk_norm="rms_norm" if dual or heads else None,
        )  # fmt: skip
        _wake(transformer, wide=heads > 0)
        first = transformers.CLIPTextModelWithProjection(_text(tokenizers[0], hidden_size=16, projection_dim=16))
        torch.nn.init.eye_(first.text_projection.weight)  # as in the published ones, whose single files leave it out
        second = transformers.CLIPTextModelWithProjection(
            _text(tokenizers[1], hidden_size=24, projection_dim=24, hidden_act="gelu")
        )
        third = transformers.T5EncoderModel(_t5()) if t5 else None
        vae = _wide_vae(scaling_factor=1.5305, shift_factor=0.0609)
    diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=first, tokenizer=tokenizers[0], text_encoder_2=second, tokenizer_2=tokenizers[1],
        text_encoder_3=third, tokenizer_3=_t5_tokenizer() if t5 else None,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


def make_flux(folder: Path, *, wide: bool = False) -> Path:
    """Save a FLUX.1 dev model of about 0.1 million random parameters beside T5's words.

    If `wide`, it has one block of each kind in the real width, half a billion parameters, and is saved in bf16.
    """
    with seeded():
        tokenizer = _tokenizer()
        count, heads, axes = (1, 24, (16, 56, 56)) if wide else (2, 2, (4, 6, 6))
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=count, num_single_layers=count, attention_head_dim=sum(axes),
            num_attention_heads=heads, joint_attention_dim=40, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=axes,
        )  # fmt: skip
        _wake(transformer, wide=wide)
        first = transformers.CLIPTextModel(_text(tokenizer, hidden_size=16, projection_dim=16))
        second = transformers.T5EncoderModel(_t5())
        vae = _flux_vae()
    diffusers.FluxPipeline(
        transformer=transformer, vae=vae, text_encoder=first, tokenizer=tokenizer, text_encoder_2=second,
        tokenizer_2=_t5_tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC),
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
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
        parts = {"text_encoder": transformers.T5EncoderModel(_t5()), "tokenizer": _t5_tokenizer(), "vae": _flux_vae()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    diffusers.ChromaPipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_z_image(folder: Path, *, wide: bool = False, seed: int = 0) -> Path:
    """Save a Z-Image model of about 0.1 million random parameters beside Qwen3's words; `wide` as for FLUX.1."""
    with seeded(seed):
        count, heads, axes = (1, 30, [32, 48, 48]) if wide else (2, 2, [4, 6, 6])
        blocks = {"n_layers": count, "n_refiner_layers": count, "n_heads": heads, "n_kv_heads": heads}
        sizes = {"dim": heads * sum(axes), "cap_feat_dim": 16, "axes_dims": axes, "axes_lens": [640, 64, 64]}
        transformer = diffusers.ZImageTransformer2DModel(**blocks, **sizes)
        _wake(transformer, wide=wide)
        parts = {
            "text_encoder": transformers.Qwen3Model(_qwen3(3)),
            "tokenizer": _local_tokenizer(CONFIGS / "qwen3"),
            "vae": _flux_vae(),
        }
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.ZImagePipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def make_flux2_klein(folder: Path, *, wide: bool = False) -> Path:
    """Save a FLUX.2 klein model of about 0.2 million random parameters beside Qwen3's words; `wide` as for FLUX.1."""
    with seeded():
        count, heads, axes = (1, 24, (32,) * 4) if wide else (2, 2, (4,) * 4)
        blocks = {"num_layers": count, "num_single_layers": count, "num_attention_heads": heads}
        sizes = {"attention_head_dim": sum(axes), "joint_attention_dim": 48, "axes_dims_rope": axes}
        transformer = diffusers.Flux2Transformer2DModel(**blocks, **sizes, guidance_embeds=False)
        with torch.no_grad():  # else blocks change next to nothing
            for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
                transformer.get_submodule(name).linear.weight.mul_(20)
        _wake(transformer, wide=wide)
        parts = {
            "text_encoder": transformers.Qwen3ForCausalLM(_qwen3(27)),
            "tokenizer": _local_tokenizer(CONFIGS / "qwen3"),
        }
        vae = diffusers.AutoencoderKLFlux2(**_VAE | {"latent_channels": 32})
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC)
    diffusers.Flux2KleinPipeline(transformer=transformer, scheduler=scheduler, vae=vae, **parts).save_pretrained(folder)
    return folder


def _qwen3(layers: int) -> transformers.Qwen3Config:
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "tie_word_embeddings": True}
    widths = {"vocab_size": 151669, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers}
    return transformers.Qwen3Config(**widths, **attention)


def _wake(transformer: torch.nn.Module, *, wide: bool) -> None:
    """Fill the layers that begin with zeros: modulations and the last one, without which nothing comes out."""
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    if wide:
        transformer.to(torch.bfloat16)


def _t5() -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=32128, d_model=40, d_kv=8, d_ff=48, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )


def _t5_tokenizer() -> transformers.PreTrainedTokenizerBase:
    return _local_tokenizer(CONFIGS / "t5")


def _local_tokenizer(folder: Path, **changes: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **changes)


def _flux_vae() -> diffusers.AutoencoderKL:
    """Chroma and Z-Image have it, too."""
    return _wide_vae(scaling_factor=0.3611, shift_factor=0.1159)


def _wide_vae(**changes: Any) -> diffusers.AutoencoderKL:  # noqa: ANN401 - any settings
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **changes)


def _tokenizer(**changes: str) -> transformers.PreTrainedTokenizerBase:
    return _local_tokenizer(MICRO_FOLDER / "tokenizer", **changes)


def _unet(**changes: Any) -> diffusers.UNet2DConditionModel:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 4,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings | changes)


def _vae(**changes: Any) -> diffusers.AutoencoderKL:  # noqa: ANN401 - any settings
    return diffusers.AutoencoderKL(**_VAE | changes)


def _text(tokenizer: transformers.PreTrainedTokenizerBase, **changes: Any) -> transformers.CLIPTextConfig:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40, "projection_dim": 32,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    return transformers.CLIPTextConfig(**settings | changes)


def _scheduler(**changes: str) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **changes,
    )  # fmt: skip


def _save_sd(folder: Path, scheduler: diffusers.DDIMScheduler, **parts: Any) -> Path:  # noqa: ANN401 - its models
    diffusers.StableDiffusionPipeline(
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    ).save_pretrained(folder, safe_serialization=True)
    return folder
