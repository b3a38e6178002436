"""Z-Image and Z-Image Turbo, Z-Image Team 2025, https://arxiv.org/abs/2511.22699: a transformer, and Qwen3.

Text and image are one sequence of different lengths, each of which is filled up to a multiple of 32 tokens. The time
runs from noise (0) to image (1), and the direction that is predicted is that to the image, so that both are turned
around here (diffusers 0.42, `pipelines/z_image`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.base_models.detect import Base
from trainer.devices import Untyped
from trainer.families.family import LENGTHS, Conditioning, Family
from trainer.families.files import loading
from trainer.families.files.loading import Pipeline
from trainer.families.noise import FlowNoise

TOKENS = 512  # that the pipeline reads
_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")


class ZImage(Family):
    """A Z-Image model, frozen."""

    denoiser_targets = (*_ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        shift = float(pipeline.scheduler.config.shift)
        self.noise = FlowNoise(lambda _shape: shift)

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return super().generate_latents(prompt, seed=seed, steps=steps, guidance=guidance - 1, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts.

        The pipeline counts guidance from 0, which is none, and takes sides of whole tokens.
        """
        prompts: dict[str, Any] = {
            "prompt_embeds": self._texts(prompt),
            "negative_prompt_embeds": self._texts(negative),
        }
        guidance = options["guidance_scale"] - 1
        return loading.sample(self._pipeline, prompts, {**options, **self._sides(options), "guidance_scale": guidance})

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: Qwen3's hidden states before its last layer [b, tokens, width].

        What is behind the length [b] of each is filled with zeros.
        """
        texts = [self._chat(prompt) for prompt in prompts]
        inputs = self._pipeline.tokenizer(
            texts, padding="max_length", padding_side="right", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        mask = inputs.attention_mask.to(self.device)
        encoder = self._pipeline.text_encoder
        states = encoder(inputs.input_ids.to(self.device), mask.bool(), output_hidden_states=True).hidden_states
        return {"text": states[-2] * mask.unsqueeze(2), LENGTHS: inputs.attention_mask.sum(1)}

    def _chat(self, prompt: str) -> str:
        """Return a prompt as what a person says in a chat, which the model answers."""
        messages = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        text: str = self._pipeline.tokenizer.apply_chat_template(messages, **options)
        return text

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        frames = noisy.to(self.dtype).unsqueeze(2).unbind()
        shares = 1 - timesteps / self.noise.timesteps
        output: list[Tensor] = self.denoiser(list(frames), shares, self._texts(conditioning), return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    def _texts(self, conditioning: Conditioning) -> list[Tensor]:
        """Return the embeddings [tokens, width] of each prompt."""
        lengths = conditioning[LENGTHS].tolist()
        text = conditioning["text"].to(self.dtype)
        return [row[: int(length)] for row, length in zip(text, lengths, strict=True)]

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt, and those that the pipeline reads beside the words of its template."""
        tokenizer = self._pipeline.tokenizer
        return len(tokenizer(prompt).input_ids), TOKENS - len(tokenizer(self._chat("")).input_ids)
