"""Stable Diffusion 1.x and 2.x, Rombach et al. 2022, https://arxiv.org/abs/2112.10752: a UNet, a VAE, a text encoder.

2.x has another text encoder (OpenCLIP-H) and comes in two variants that look alike: one predicts noise, at 512 x 512
pixels, the other v, at 768 x 768.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import PredictionType
from trainer.families import loading
from trainer.families.family import Conditioning
from trainer.families.loading import Pipeline
from trainer.families.noise import DiscreteNoise


class SD:
    """A Stable Diffusion 1.x or 2.x model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    idle: tuple[str, ...] = ()

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        self._pipeline = pipeline
        self._scheduler = pipeline.scheduler
        self._side = pipeline.unet.config.sample_size
        self._single_file = single_file
        self.base = base
        self.spec = FAMILIES[base.family]
        self.device = device
        self.denoiser: nn.Module = pipeline.unet
        self.vae = pipeline.vae
        self.tokenizer = pipeline.tokenizer
        self.text_encoders: dict[str, nn.Module] = {"lora_te": pipeline.text_encoder}
        self._skips: list[RemovableHandle] = []
        self.set_prediction_type(base.prediction_type or pipeline.scheduler.config.prediction_type)

    @classmethod
    def load(cls, path: Path, base: Base, vae: Path | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a base model from a path into main memory; nothing is fetched and nothing is unpickled.

        The VAE at the other path, if there is one, is taken in place of the base model's own.

        Raises:
            UserError: files are missing or damaged.
        """
        return cls(loading.load(path, base, vae, dtype), base, device, single_file=path.is_file())

    def set_prediction_type(self, predicts: PredictionType) -> None:
        """Take the UNet's output as noise or as v, in training and in sampling."""
        scheduler = loading.scheduler_for(self._scheduler, predicts, zero_snr=self.base.zero_snr)
        self._pipeline.scheduler = scheduler
        self.noise = DiscreteNoise(scheduler.alphas_cumprod.to(self.device), predicts)
        if self._single_file:  # its config is that of the family's first variant
            first, variant = self.spec.variants[self.spec.first], self.spec.variants[predicts]
            side = self._side * variant.resolution // first.resolution
            self._pipeline.unet.register_to_config(sample_size=side)

    def set_clip_skip(self, clip_skip: int) -> None:
        """Take the text encoder's output at this layer from its end; 2.x has none to skip, as its last is left out."""
        for hook in self._skips:
            hook.remove()
        layers = self._pipeline.text_encoder.config.num_hidden_layers
        used = max(1, layers + 1 - clip_skip) if self.spec.clip_skip else layers
        self._skips = loading.skip_layers(self._pipeline.text_encoder, after=used)
        self.idle = tuple(f"lora_te_text_model_encoder_layers_{layer}_" for layer in range(used, layers))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of an image at its native resolution."""
        return loading.latent_shape(self._pipeline)

    def module_name(self, path: str) -> str:
        """Return the name of a module of the UNet in adapter files: its path."""
        return path.replace(".", "_")

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return loading.generate_latents(self._pipeline, prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Any) -> Tensor:  # noqa: ANN401 - untyped
        """Generate scaled latents [1, c, h, w] from two encoded prompts; the options are those of a pipeline."""
        return loading.sample(self._pipeline, prompt, negative, options)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts to the text encoder's hidden states [b, chunks * tokens, width]; longer ones are cut off."""
        tokens = tokenize(self.tokenizer, prompts, chunks)
        hidden = self.text_encoders["lora_te"](tokens.to(self.device))[0]
        return {"text": hidden.reshape(len(prompts), -1, hidden.shape[-1])}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; it takes no sizes."""
        dtype = next(self.denoiser.parameters()).dtype
        prediction: Tensor = self.denoiser(
            noisy.to(dtype), timesteps, conditioning["text"].to(dtype), return_dict=False
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without start and end, and those that the text encoder can take."""
        return len(self.tokenizer(prompt, add_special_tokens=False).input_ids), self.tokenizer.model_max_length - 2

    def pipeline(self) -> Pipeline:
        """Return the live model as a diffusers pipeline."""
        return self._pipeline

    def prompt_encoders(self) -> dict[str, nn.Module]:
        """Return the modules that encode prompts, by name."""
        return self.text_encoders

    def encoders(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are cached, by name."""
        return {"vae": self.vae, **self.text_encoders}


def tokenize(tokenizer: Any, prompts: Sequence[str], chunks: int) -> Tensor:  # noqa: ANN401 - untyped
    """Return token ids [b * chunks, tokens]: a prompt's tokens in chunks, each with start and end tokens and padded.

    The caller puts the hidden states of the chunks side by side, as programs do that take prompts of any length.
    """
    length = tokenizer.model_max_length - 2
    rows = []
    for ids in tokenizer(list(prompts), add_special_tokens=False).input_ids:
        for start in range(0, chunks * length, length):
            row = [tokenizer.bos_token_id, *ids[start : start + length], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length + 2 - len(row)))
    return torch.tensor(rows)
