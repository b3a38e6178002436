"""Chroma, lodestones 2025, https://huggingface.co/lodestones/Chroma1-HD: a transformer of FLUX.1's shape, and T5.

It is not told a guidance, but guided by a negative prompt (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). Of
T5's padding it sees one token; the rest is masked (https://huggingface.co/lodestones/Chroma, "Masking T5 Padding
Tokens"). The mask is of truth values, as in the original code: diffusers 0.42 makes it of numbers, which attention adds
to its scores, so that all padding is seen (https://github.com/huggingface/diffusers/issues/13619).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer import devices
from trainer.base_models.detect import Base
from trainer.families.family import Conditioning
from trainer.families.files.loading import Pipeline
from trainer.families.flux import T5_TOKENS, Flux


class Chroma(Flux):
    """A Chroma model, frozen."""

    t5_tokenizer: ClassVar[str] = "tokenizer"

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        # diffusers makes this input in main memory, so that each step would wait for the device.
        guidance: nn.Module = pipeline.transformer.time_text_embed.guidance_proj
        guidance.register_forward_pre_hook(lambda _module, inputs: devices.send(inputs[0], device))

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return self.generate_from_prompts(prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: T5's hidden states [b, tokens, width], and which of them are seen."""
        text, _, mask, *_ = self._pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return {"text": text, "mask": mask.bool()}

    def _inputs(self, conditioning: Conditioning, packed: Tensor) -> dict[str, Tensor]:
        """Return the mask [b, tokens] of text and image, for packed latents [b, tokens, width]."""
        mask = conditioning["mask"].bool()  # stored ones are numbers
        return {"attention_mask": torch.cat([mask, mask.new_ones(packed.shape[:2])], dim=1)}
