"""Stable Diffusion XL, Podell et al. 2023, https://arxiv.org/abs/2307.01952: two text encoders, size conditioning.

Its UNet is told how large an image was before it was resized and where it was cropped (section 2.2), so that it learns
from small and cropped images without generating such.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.base_models import layer_names
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import PredictionType
from trainer.families import loading
from trainer.families.family import Conditioning
from trainer.families.loading import Pipeline
from trainer.families.noise import DiscreteNoise
from trainer.families.sd import tokenize


class SDXL:
    """A Stable Diffusion XL model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device) -> None:
        self._pipeline = pipeline
        self._scheduler = pipeline.scheduler
        self.base = base
        self.spec = FAMILIES[base.family]
        self.device = device
        self.denoiser: nn.Module = pipeline.unet
        self.vae = pipeline.vae
        self.text_encoders: dict[str, nn.Module] = {
            "lora_te1": pipeline.text_encoder,
            "lora_te2": pipeline.text_encoder_2,
        }
        # The output of the first encoder's last layer is not used.
        last = pipeline.text_encoder.config.num_hidden_layers - 1
        self.idle: tuple[str, ...] = (f"lora_te1_text_model_encoder_layers_{last}_",)
        self._tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        self.set_prediction_type(base.prediction_type or pipeline.scheduler.config.prediction_type)

    @classmethod
    def load(cls, path: Path, base: Base, vae: Path | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a base model from a path into main memory; nothing is fetched and nothing is unpickled.

        The VAE at the other path, if there is one, is taken in place of the base model's own.

        Raises:
            UserError: files are missing or damaged.
        """
        return cls(loading.load(path, base, vae, dtype), base, device)

    def set_prediction_type(self, predicts: PredictionType) -> None:
        """Take the UNet's output as noise or as v, in training and in sampling."""
        scheduler = loading.scheduler_for(self._scheduler, predicts, zero_snr=self.base.zero_snr)
        self._pipeline.scheduler = scheduler
        self.noise = DiscreteNoise(scheduler.alphas_cumprod.to(self.device), predicts)

    def set_clip_skip(self, clip_skip: int) -> None:
        """Ignore it: both encoders are always read at their penultimate layer."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of an image at its native resolution."""
        return loading.latent_shape(self._pipeline)

    def module_name(self, path: str) -> str:
        """Return the name of a module of the UNet in adapter files: the original one, with its own block numbers."""
        unet = self._pipeline.unet
        upsampler = re.match(r"up_blocks\.(\d+)\.upsamplers", path)
        attends = not upsampler or hasattr(unet.up_blocks[int(upsampler[1])], "attentions")
        original = layer_names.original(path, unet.config.layers_per_block + 1, attends=attends)
        return original.replace(".", "_")

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return loading.generate_latents(self._pipeline, prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Any) -> Tensor:  # noqa: ANN401 - untyped
        """Generate scaled latents [1, c, h, w] from two encoded prompts; the options are those of a pipeline."""
        return loading.sample(self._pipeline, prompt, negative, options)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts to both encoders' penultimate hidden states [b, chunks * tokens, width].

        With them goes the second encoder's pooled embedding [b, width] of a prompt's first chunk, as in programs that
        take prompts of any length.
        """
        states = []
        for tokenizer, encoder in zip(self._tokenizers, self.text_encoders.values(), strict=True):
            output = encoder(tokenize(tokenizer, prompts, chunks).to(self.device), output_hidden_states=True)
            hidden = output.hidden_states[-2]
            states.append(hidden.reshape(len(prompts), -1, hidden.shape[-1]))
        return {"text": torch.cat(states, dim=-1), "pooled": output.text_embeds[::chunks]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        `sizes` [b, 6] of the conditioning: original height and width, top and left of the crop, height and width.
        """
        dtype = next(self.denoiser.parameters()).dtype
        # Sizes stay in fp32: bf16 cannot represent 1023.
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": conditioning["sizes"]}
        prediction: Tensor = self.denoiser(
            noisy.to(dtype), timesteps, conditioning["text"].to(dtype), added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without start and end, and those that the text encoders can take."""
        tokenizer = self._tokenizers[0]
        return len(tokenizer(prompt, add_special_tokens=False).input_ids), tokenizer.model_max_length - 2

    def pipeline(self) -> Pipeline:
        """Return the live model as a diffusers pipeline."""
        return self._pipeline

    def prompt_encoders(self) -> dict[str, nn.Module]:
        """Return the modules that encode prompts, by name."""
        return self.text_encoders

    def encoders(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are cached, by name."""
        return {"vae": self.vae, **self.text_encoders}
