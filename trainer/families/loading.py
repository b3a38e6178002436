"""Shared by the families: locate a base model, load it as a diffusers pipeline, encode images to latents.

A base is a folder in diffusers form, a single file with the original names, or a name on the Hugging Face hub. Only
the last is ever fetched; what a single file leaves out (settings, tokenizer) lies in `configs`. Nothing is unpickled.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer

from trainer.base_models import CONFIGS, MICRO, MICRO_FOLDER, detect
from trainer.base_models.detect import FamilyName, Objective
from trainer.config import ModelConfig
from trainer.errors import UserError

# These libraries draw bars and remark on what we know: that picture processors are not needed here.
for library in (diffusers.utils.logging, transformers.utils.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()
# Newer versions of diffusers call it `dtype`; the oldest that will do know the old name alone.
warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
# What each family's tokenizers fill a short prompt up with.
_PADS: dict[FamilyName, dict[str, str]] = {
    "sd15": {"tokenizer": "<|endoftext|>"},
    "sd21": {"tokenizer": "!"},
    "sdxl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
}


def locate(model: ModelConfig) -> tuple[Path, str]:
    """Return the path of a base model, and its revision if it comes from the hub, which is asked if need be.

    Raises:
        UserError: it cannot be fetched.
    """
    if model.base == MICRO:
        return MICRO_FOLDER, ""
    if not detect.is_hub_name(model.base):
        return Path(model.base).expanduser() if detect.is_here(model.base) else Path(model.base), ""
    try:
        folder = Path(DiffusionPipeline.download(model.base, revision=model.revision or None, use_safetensors=True))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            "The base model {base!r} is not there: nothing here has that name, and it could not be fetched from the "
            "Hugging Face hub.",
            "Check the name and the connection, or give a folder or a .safetensors file that is on this machine.",
            base=model.base,
        ) from error
    return folder, folder.name  # the hub's cache names a snapshot by its commit


def load(kind: Any, path: Path, family: FamilyName, dtype: torch.dtype) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
    """A frozen pipeline of a diffusers class in main memory, from a folder or a single file; its VAE stays in fp32.

    Raises:
        UserError: files are missing or damaged.
    """
    options: dict[str, Any] = {"local_files_only": True}
    options |= {"add_watermarker": False} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    try:
        if path.is_dir():
            # Each part is converted as it is read: twice the model never lies in memory.
            options["torch_dtype"] = {"default": dtype, "vae": torch.float32}
            pipeline = kind.from_pretrained(path, use_safetensors=True, **options)
        else:
            for name, pad in _PADS[family].items():
                options[name] = CLIPTokenizer.from_pretrained(CONFIGS / "clip", local_files_only=True, pad_token=pad)
            place = {"config": str(CONFIGS / family), "local_files_only": True}
            vae = AutoencoderKL.from_single_file(str(path), subfolder="vae", torch_dtype=torch.float32, **place)
            pipeline = kind.from_single_file(str(path), vae=vae, torch_dtype=dtype, **place | options)
        pipeline.set_progress_bar_config(disable=True)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                # The VAE's decoder overflows in fp16.
                part.to(torch.float32 if name == "vae" else dtype).requires_grad_(False).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].replace(str(path), path.name)
        raise UserError(
            "The base model {name!r} cannot be loaded: {reason}",
            "Check that all its files are there, in safetensors form.",
            name=path.name,
            reason=reason[:200],
        ) from error
    return pipeline


def set_objective(pipeline: Any, objective: Objective, *, zero_snr: bool) -> None:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Make a pipeline's scheduler read predictions in this way.

    Zero terminal SNR: Lin et al. 2023, https://arxiv.org/abs/2305.08891 (section 3.1; 3.3 for the spacing).
    """
    config = pipeline.scheduler.config
    changes: dict[str, Any] = {}
    if config.prediction_type != objective:
        changes["prediction_type"] = objective
    if zero_snr and not config.get("rescale_betas_zero_snr"):
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(config, **changes)


def encode_images(pipeline: Any, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Mean and standard deviation [b, c, H/8, W/8] of the scaled latents of pictures [b, 3, H, W] in -1..1."""
    dtype = encoding_precision(pipeline, device)
    lower: AbstractContextManager[Any] = nullcontext()
    if dtype != torch.float32:
        pipeline.vae.encoder.to(memory_format=torch.channels_last)  # without it bf16 takes three times as long
        lower = torch.autocast(device.type, dtype=dtype)
    with torch.no_grad(), lower:
        posterior = pipeline.vae.encode(pixels.to(device, torch.float32)).latent_dist
    scale = pipeline.vae.config.scaling_factor
    return posterior.mean.float() * scale, posterior.std.float() * scale


def encoding_precision(pipeline: Any, device: torch.device) -> torch.dtype:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Return the precision for encoding images: fp32, but bf16 on a CPU whose denoiser is in it (a fifth of the time).

    The latents then differ by a hundredth of their spread, which is less than two encodings of one picture do.
    """
    return torch.bfloat16 if device.type == "cpu" and pipeline.unet.dtype == torch.bfloat16 else torch.float32


def decode_latents(pipeline: Any, latents: Tensor) -> list[Image.Image]:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Pictures from scaled latents [b, c, h, w], in fp32 whatever the denoiser computed in."""
    with torch.no_grad():
        pixels = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return pictures


def autocast(pipeline: Any) -> AbstractContextManager[Any]:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Mixed precision for sampling with a denoiser that is not in fp32."""
    dtype = pipeline.unet.dtype
    return nullcontext() if dtype == torch.float32 else torch.autocast(pipeline.device.type, dtype=dtype)


def draw_latents(pipeline: Any, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Scaled latents [c, h, w] of a square picture, the same for the same request on the same device."""
    with torch.no_grad(), autocast(pipeline):
        latents: Tensor = pipeline(
            prompt, num_inference_steps=steps, guidance_scale=guidance, width=side, height=side,
            generator=torch.Generator().manual_seed(seed), output_type="latent",
        ).images[0]  # fmt: skip
    return latents
