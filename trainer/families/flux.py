"""FLUX.1 dev, Black Forest Labs 2024, https://github.com/black-forest-labs/flux: a transformer, CLIP and T5.

Its latents are packed: 2 x 2 of them are one token with a position. It is distilled to follow a guidance that it is
told; an adapter is trained at a guidance of 1, which is none, as sd-scripts and diffusers' README do, unless
`model.guidance` says otherwise.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from trainer import devices
from trainer.base_models.detect import Base
from trainer.devices import Untyped
from trainer.families.family import JOINT_TARGETS, Conditioning, Family
from trainer.families.files.loading import Pipeline
from trainer.families.noise import FlowNoise

T5_TOKENS = 512


class Flux(Family):
    """A FLUX.1 model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = JOINT_TARGETS
    t5_tokenizer: ClassVar[str] = "tokenizer_2"  # component

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        self.noise = FlowNoise(self._shift)
        self._guidance = 1.0

    def _shift(self, shape: Sequence[int]) -> float:
        """Return the shift for latents [b, c, h, w]: e to a power that grows with the number of tokens."""
        config = self._pipeline.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        few, many = config.base_image_seq_len, config.max_image_seq_len
        tokens = shape[-2] * shape[-1] / 4
        slope = (config.max_shift - config.base_shift) / (many - few)
        return math.exp(config.base_shift + slope * (tokens - few))

    def set_guidance(self, guidance: float) -> None:
        """Tell the transformer this guidance in training; sampling has its own."""
        self._guidance = guidance

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        packed = super().generate_latents(prompt, seed=seed, steps=steps, guidance=guidance, side=side)
        return self._unpack(packed[None], side // 8, side // 8)[0]

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts; a guidance that it is told needs one alone."""
        _, height, width = self.latent_shape
        scale = self._pipeline.vae_scale_factor
        height, width = ((options.get(name) or side * scale) for name, side in (("height", height), ("width", width)))
        if self.spec.guided:
            negative = {}
        packed = super().sample(prompt, negative, **options)
        return self._unpack(packed, 2 * (height // (2 * scale)), 2 * (width // (2 * scale)))

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: T5's hidden states [b, tokens, width], CLIP's pooled embedding."""
        text, pooled, _ = self._pipeline.encode_prompt(
            list(prompts), None, device=self.device, max_sequence_length=T5_TOKENS
        )
        return {"text": text, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        batch, channels, height, width = noisy.shape
        dtype, text = self.dtype, conditioning["text"]
        packed = self._pipeline._pack_latents(noisy.to(dtype), batch, channels, height, width)
        prediction: Tensor = self.denoiser(
            hidden_states=packed,
            timestep=timesteps / self.noise.timesteps,
            encoder_hidden_states=text.to(dtype),
            **self._inputs(conditioning, packed),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=dtype),
            img_ids=self._places(height // 2, width // 2, dtype),
            return_dict=False,
        )[0]
        return self._unpack(prediction, height, width)

    def _places(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return the places [tokens, 3] of an image's tokens, of which the pipeline would have the device wait."""
        places = self._pipeline._prepare_latent_image_ids(1, height, width, torch.device("cpu"), dtype)
        return devices.send(places, self.device)

    def _inputs(self, conditioning: Conditioning, packed: Tensor) -> dict[str, Tensor]:
        """Return what the transformer is told besides the text, for packed latents [b, tokens, width]."""
        guidance = torch.full((len(packed),), self._guidance, device=packed.device)
        return {"guidance": guidance, "pooled_projections": conditioning["pooled"].to(packed.dtype)}

    def _unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        scale = self._pipeline.vae_scale_factor
        latents: Tensor = self._pipeline._unpack_latents(packed, height * scale, width * scale, scale)
        return latents

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without its end, and those that T5 can take."""
        tokenizer = getattr(self._pipeline, self.t5_tokenizer)
        return len(tokenizer(prompt, add_special_tokens=False).input_ids), T5_TOKENS - 1
