"""Stable Diffusion 3 and 3.5, Esser et al. 2024, https://arxiv.org/abs/2403.03206: a transformer, three text encoders.

Text and image are one sequence, with weights of their own (section 4). T5, the third text encoder, may be missing: it
was dropped at random in training (section 5.3.3), and zeros take the place of its embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.base_models.detect import Base
from trainer.families.family import JOINT_TARGETS, Conditioning, Family
from trainer.families.files.loading import Pipeline
from trainer.families.noise import FlowNoise

T5_TOKENS, MOST_T5_TOKENS = 256, 512  # that the pipeline reads, and that T5 can read


class SD3(Family):
    """A Stable Diffusion 3 or 3.5 model, frozen."""

    denoiser_targets = JOINT_TARGETS

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        shift = float(pipeline.scheduler.config.shift)
        self.noise = FlowNoise(lambda _shape: shift)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: hidden states [b, tokens, width] of all encoders, one after the other.

        With them go the pooled embeddings [b, width] of the two CLIP encoders, which read the first tokens alone.
        """
        text, _, pooled, _ = self._pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=min(chunks * T5_TOKENS, MOST_T5_TOKENS),
        )
        return {"text": text, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        prediction: Tensor = self.denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning["text"].to(self.dtype),
            pooled_projections=conditioning["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without start and end, and those that the encoder of the most can take."""
        if self._pipeline.tokenizer_3 is None:
            return super().count_tokens(prompt)
        return len(self._pipeline.tokenizer_3(prompt, add_special_tokens=False).input_ids), T5_TOKENS - 1
