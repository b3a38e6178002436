"""Qwen-Image, Qwen Team 2025, https://arxiv.org/abs/2508.02324: a transformer, and Qwen2.5-VL.

Texts are read up to their own length, behind a template that is dropped. Latents are packed as those of FLUX.1, and
guidance keeps the norm of the prediction (diffusers 0.42, `pipelines/qwenimage`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer import devices
from trainer.devices import Untyped
from trainer.families.family import LENGTHS, Conditioning, stacked, without_padding
from trainer.families.flux import Flux

TOKENS = 512  # that the pipeline reads
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class QwenImage(Flux):
    """A Qwen-Image model, frozen."""

    denoiser_targets = (
        *_ATTENTION,
        *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
    )

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return self.generate_from_prompts(prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts; the pipeline calls their guidance a true one."""
        # The scheduler stretches the noise levels between the first step and the last, which cannot be the same.
        steps, guidance = max(2, options.pop("num_inference_steps")), options.pop("guidance_scale")
        return super().sample(prompt, negative, num_inference_steps=steps, true_cfg_scale=guidance, **options)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: Qwen2.5-VL's last hidden states behind its template [b, tokens, width].

        What is behind the length [b] of each is filled with zeros.
        """
        rows = [self._encode(prompt) for prompt in prompts]
        return stacked({"text": rows, LENGTHS: [torch.tensor(len(row)) for row in rows]})

    def _encode(self, prompt: str) -> Tensor:
        """Return the embedding [tokens, width] of a prompt, which does not depend on what others it is encoded with."""
        pipeline, start = self._pipeline, self._pipeline.prompt_template_encode_start_idx
        text, most = pipeline.prompt_template_encode.format(prompt), start + TOKENS
        ids = pipeline.tokenizer(text, max_length=most, truncation=True, return_tensors="pt").input_ids
        states: Tensor = pipeline.text_encoder(ids.to(self.device)).last_hidden_state
        return states[0, start:]

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        batch, channels, height, width = noisy.shape
        text = without_padding(conditioning)["text"].to(self.dtype)
        prediction: Tensor = self.denoiser(
            hidden_states=self._pipeline._pack_latents(noisy.to(self.dtype), batch, channels, height, width),
            timestep=timesteps / self.noise.timesteps,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=self._mask(conditioning[LENGTHS], text.shape[1]),
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        return self._unpack(prediction, height, width)

    def _mask(self, lengths: Tensor, tokens: int) -> Tensor | None:
        """Return which tokens [b, tokens] are those of texts of these lengths [b]; None if all are."""
        if len({*lengths.tolist()}) == 1:
            return None
        mask: Tensor = devices.send(torch.arange(tokens) < lengths[:, None], self.device)
        return mask

    def _unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        return super()._unpack(packed, height, width).squeeze(2)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt, and those that the pipeline reads beside the words of its template."""
        pipeline = self._pipeline
        template = pipeline.tokenizer(pipeline.prompt_template_encode.format("")).input_ids
        around = len(template) - pipeline.prompt_template_encode_start_idx
        return len(pipeline.tokenizer(prompt).input_ids), TOKENS - around
