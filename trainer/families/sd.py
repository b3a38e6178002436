"""Stable Diffusion 1.x, Rombach et al. 2022, https://arxiv.org/abs/2112.10752: one UNet, one VAE, one text encoder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from trainer.config import MICRO, ModelConfig
from trainer.errors import UserError

Conditioning = dict[str, Tensor]
# These libraries draw bars and remark on what we know: that picture processors are not needed here.
for library in (diffusers.utils.logging, transformers.utils.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()
_MICRO = Path(__file__).parent / "micro"


class SD:
    """A Stable Diffusion 1.x model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    architecture = "stable-diffusion-v1/lora"
    base_version = "sd_v1"

    def __init__(self, pipeline: StableDiffusionPipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self.device = device
        self.denoiser: nn.Module = pipeline.unet
        self.vae = pipeline.vae
        self.tokenizer = pipeline.tokenizer
        self.text_encoders: dict[str, nn.Module] = {"lora_te": pipeline.text_encoder}
        self.objective: Literal["epsilon", "v_prediction"] = pipeline.scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = pipeline.scheduler.alphas_cumprod.to(device)

    @classmethod
    def load(cls, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a diffusers folder; nothing is fetched and nothing is unpickled.

        Raises:
            UserError: no such folder, or it holds no Stable Diffusion 1.x model.
        """
        pipeline = load_pipeline(base_folder(model.base), device, dtype)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        return cls(pipeline, device)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, H/8, W/8] of the scaled latents of pictures [b, 3, H, W] in -1..1."""
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean * scale, posterior.std * scale

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Hidden states [b, chunks * tokens, width] of the text encoder; what is too long is cut off."""
        tokens = tokenize(self.tokenizer, prompts, chunks)
        hidden = self.text_encoders["lora_te"](tokens.to(self.device))[0]
        return {"text": hidden.reshape(len(prompts), -1, hidden.shape[-1])}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]."""
        dtype = next(self.denoiser.parameters()).dtype
        prediction: Tensor = self.denoiser(
            noisy.to(dtype), timesteps, conditioning["text"].to(dtype), return_dict=False
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt without the two marks around it, and how many of them the text encoder can take."""
        return len(self.tokenizer(prompt, add_special_tokens=False).input_ids), self.tokenizer.model_max_length - 2

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
        """The live model as a diffusers pipeline."""
        return self._pipeline

    def encoders(self) -> dict[str, nn.Module]:
        """The modules whose outputs are cached."""
        return {"vae": self.vae, **self.text_encoders}


def tokenize(tokenizer: Any, prompts: Sequence[str], chunks: int) -> Tensor:  # noqa: ANN401 - transformers is untyped
    """Token numbers [b * chunks, tokens]: a prompt's tokens in parts, each between the two marks and padded.

    The states of the parts are put side by side by who asks, as the programs do that take prompts of any length.
    """
    room = tokenizer.model_max_length - 2
    rows = []
    for numbers in tokenizer(list(prompts), add_special_tokens=False).input_ids:
        for start in range(0, chunks * room, room):
            row = [tokenizer.bos_token_id, *numbers[start : start + room], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (room + 2 - len(row)))
    return torch.tensor(rows)


def base_folder(base: str) -> Path:
    """Where a base model lies.

    Raises:
        UserError: there is no such folder, or it is no Stable Diffusion 1.x model in diffusers form.
    """
    folder = _MICRO if base == MICRO else Path(base).expanduser()
    remedy = "Give the folder of a Stable Diffusion 1.x model in diffusers form, or 'micro' for the built-in one."
    if not folder.is_dir():
        raise UserError(f"The base model {folder.name!r} is not there.", remedy)
    try:
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UserError(
            f"The folder {folder.name!r} is no diffusers model: it has no model_index.json.", remedy
        ) from None
    if kind != "StableDiffusionPipeline":
        raise UserError(f"The base model {folder.name!r} is a {kind}, not a Stable Diffusion 1.x model.", remedy)
    return folder


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A diffusers pipeline from a folder, safetensors only.

    Raises:
        UserError: files are missing or damaged.
    """
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0].replace(str(folder), folder.name)
        raise UserError(
            f"The base model {folder.name!r} cannot be loaded: {reason[:200]}",
            "Check that all its files are there, in safetensors form.",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.text_encoder):
        part.to(device, dtype)
    pipeline.vae.to(device, torch.float32)  # its decoder overflows in fp16
    return pipeline
