"""Stable Diffusion XL, Podell et al. 2023, https://arxiv.org/abs/2307.01952: two text encoders, and sizes to go by.

Its UNet is told how large a picture was before it was resized and where it was cropped (section 2.2), so that it
learns from small and cropped pictures without drawing such.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

from trainer.base_models import layer_names
from trainer.base_models.detect import Base, Objective
from trainer.families import loading
from trainer.families.sd import Conditioning, tokenize


class SDXL:
    """A Stable Diffusion XL model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    architecture = "stable-diffusion-xl-v1-base/lora"
    base_version = "sdxl_base_v1-0"

    def __init__(self, pipeline: StableDiffusionXLPipeline, found: Base, device: torch.device) -> None:
        self._pipeline = pipeline
        self.found = found
        self.device = device
        self.denoiser: nn.Module = pipeline.unet
        self.vae = pipeline.vae
        self.text_encoders: dict[str, nn.Module] = {
            "lora_te1": pipeline.text_encoder,
            "lora_te2": pipeline.text_encoder_2,
        }
        # Of the first encoder, what the last layer makes is not used.
        last = pipeline.text_encoder.config.num_hidden_layers - 1
        self.idle: tuple[str, ...] = (f"lora_te1_text_model_encoder_layers_{last}_",)
        self._tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        self.set_objective(found.objective or pipeline.scheduler.config.prediction_type)

    @classmethod
    def load(cls, path: Path, found: Base, device: torch.device, dtype: torch.dtype) -> Self:
        """Load what was found at a path into main memory; nothing is fetched and nothing is unpickled.

        Raises:
            UserError: files are missing or damaged.
        """
        return cls(loading.load(StableDiffusionXLPipeline, path, found.family, dtype), found, device)

    def set_objective(self, objective: Objective) -> None:
        """Take the UNet's output as noise or as v, in training and in pictures."""
        self.objective: Objective = objective
        loading.set_objective(self._pipeline, objective, zero_snr=self.found.zero_snr)
        self.alphas_cumprod: Tensor = self._pipeline.scheduler.alphas_cumprod.to(self.device)

    def module_name(self, path: str) -> str:
        """The name of a module of the UNet in adapter files: the original one, which numbers the blocks through."""
        found = re.match(r"up_blocks\.(\d+)\.upsamplers", path)
        attends = not found or hasattr(self._pipeline.unet.up_blocks[int(found[1])], "attentions")
        return layer_names.original(path, self._pipeline.unet.config.layers_per_block + 1, attends=attends).replace(
            ".", "_"
        )

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, H/8, W/8] of the scaled latents of pictures [b, 3, H, W] in -1..1."""
        return loading.encode_images(self._pipeline, pixels, self.device)

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Pictures from scaled latents [b, c, h, w]."""
        return loading.decode_latents(self._pipeline, latents)

    def draw_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Scaled latents [c, side/8, side/8] of a picture, the same for the same request."""
        return loading.draw_latents(self._pipeline, prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Both encoders' last hidden states but one [b, chunks * tokens, width], and a summary [b, pooled width].

        The summary is the second encoder's, of a prompt's first part, as in the programs that take prompts of any
        length.
        """
        states = []
        for tokenizer, encoder in zip(self._tokenizers, self.text_encoders.values(), strict=True):
            output = encoder(tokenize(tokenizer, prompts, chunks).to(self.device), output_hidden_states=True)
            hidden = output.hidden_states[-2]
            states.append(hidden.reshape(len(prompts), -1, hidden.shape[-1]))
        return {"text": torch.cat(states, dim=-1), "pooled": output.text_embeds[::chunks]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        `sizes` [b, 6] of the conditioning: original height and width, top and left of the crop, height and width.
        """
        dtype = next(self.denoiser.parameters()).dtype
        # Sizes stay in fp32: bf16 has no 1023.
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": conditioning["sizes"]}
        prediction: Tensor = self.denoiser(
            noisy.to(dtype), timesteps, conditioning["text"].to(dtype), added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt without the two marks around it, and how many of them the text encoders can take."""
        tokenizer = self._tokenizers[0]
        return len(tokenizer(prompt, add_special_tokens=False).input_ids), tokenizer.model_max_length - 2

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
        """The live model as a diffusers pipeline."""
        return self._pipeline

    def encoders(self) -> dict[str, nn.Module]:
        """The modules whose outputs are cached."""
        return {"vae": self.vae, **self.text_encoders}
