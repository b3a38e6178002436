"""Stable Diffusion 1.x and 2.x, Rombach et al. 2022, https://arxiv.org/abs/2112.10752: a UNet, a VAE, a text encoder.

2.x has another text encoder (OpenCLIP-H) and comes in two kinds that look alike: one predicts noise, at 512 x 512
pixels, the other v, at 768 x 768.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from trainer.base_models.detect import Base, Objective
from trainer.families import loading

Conditioning = dict[str, Tensor]


class SD:
    """A Stable Diffusion 1.x or 2.x model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    idle: tuple[str, ...] = ()

    def __init__(
        self, pipeline: StableDiffusionPipeline, found: Base, device: torch.device, *, single_file: bool
    ) -> None:
        self._pipeline = pipeline
        self._side = pipeline.unet.config.sample_size
        self._single_file = single_file
        self.found = found
        self.device = device
        self.denoiser: nn.Module = pipeline.unet
        self.vae = pipeline.vae
        self.tokenizer = pipeline.tokenizer
        self.text_encoders: dict[str, nn.Module] = {"lora_te": pipeline.text_encoder}
        self.set_objective(found.objective or pipeline.scheduler.config.prediction_type)

    @classmethod
    def load(cls, path: Path, found: Base, device: torch.device, dtype: torch.dtype) -> Self:
        """Load what was found at a path into main memory; nothing is fetched and nothing is unpickled.

        Raises:
            UserError: files are missing or damaged.
        """
        pipeline = loading.load(StableDiffusionPipeline, path, found.family, dtype)
        return cls(pipeline, found, device, single_file=path.is_file())

    def set_objective(self, objective: Objective) -> None:
        """Take the UNet's output as noise or as v, in training and in pictures."""
        self.objective: Objective = objective
        loading.set_objective(self._pipeline, objective, zero_snr=self.found.zero_snr)
        self.alphas_cumprod: Tensor = self._pipeline.scheduler.alphas_cumprod.to(self.device)
        if self._single_file and self.found.family == "sd21":  # both kinds have the settings of the smaller one
            self._pipeline.unet.register_to_config(sample_size=self._side * (2 if objective == "epsilon" else 3) // 2)

    @property
    def architecture(self) -> str:
        """As in `modelspec.architecture`."""
        if self.found.family == "sd15":
            return "stable-diffusion-v1/lora"
        return f"stable-diffusion-v2-{'512' if self.objective == 'epsilon' else '768-v'}/lora"

    @property
    def base_version(self) -> str:
        """As in `ss_base_model_version`."""
        if self.found.family == "sd15":
            return "sd_v1"
        return "sd_v2_512" if self.objective == "epsilon" else "sd_v2_768_v"

    def module_name(self, path: str) -> str:
        """The name of a module of the UNet in adapter files: the path as it is."""
        return path.replace(".", "_")

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
        """Hidden states [b, chunks * tokens, width] of the text encoder; what is too long is cut off."""
        tokens = tokenize(self.tokenizer, prompts, chunks)
        hidden = self.text_encoders["lora_te"](tokens.to(self.device))[0]
        return {"text": hidden.reshape(len(prompts), -1, hidden.shape[-1])}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; it is told no sizes."""
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
