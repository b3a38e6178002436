"""FLUX.2 klein, Black Forest Labs 2026, https://github.com/black-forest-labs/flux2: a transformer, and Qwen3.

Of Qwen3 it sees three layers side by side, at all places, as its padding is not masked. Latents are packed as those of
FLUX.1, and each place of a pack is normalized on its own, by the statistics of the VAE's batch norm. Here they are
unpacked, so that a latent is 8 pixels wide as in other families (diffusers 0.42, `pipelines/flux2`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import devices
from trainer.base_models.detect import Base
from trainer.devices import Untyped
from trainer.families.family import Conditioning
from trainer.families.files.loading import Pipeline
from trainer.families.flux import Flux

TOKENS = 512  # that the pipeline reads
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


class Flux2Klein(Flux):
    """A FLUX.2 klein model, frozen."""

    # Those of single blocks are for both.
    denoiser_targets = (*_ATTENTION, *_FEED_FORWARD, "attn.to_qkv_mlp_proj", "attn.to_out")

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        if base.few_step:
            pipeline.register_to_config(is_distilled=True)
        super().__init__(pipeline, base, device, single_file=single_file)

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return self.generate_from_prompts(prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts, before the pipeline unscales them."""
        report = options.pop("callback_on_step_end", None)
        last: dict[str, Tensor] = {}

        def keep(pipeline: Pipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors)
            changed: dict[str, Any] = report(pipeline, step, timestep, tensors) if report else tensors
            return changed

        unscaled = super(Flux, self).sample(prompt, negative, callback_on_step_end=keep, **options)
        return self._unpack(last["latents"], *unscaled.shape[-2:])

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: three of Qwen3's hidden states, joined [b, tokens, 3 * width]."""
        return {"text": self._pipeline.encode_prompt(list(prompts), self.device, max_sequence_length=TOKENS)[0]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        text, packs = conditioning["text"].to(self.dtype), self._pipeline._patchify_latents(noisy.to(self.dtype))
        prediction: Tensor = self.denoiser(
            hidden_states=self._pipeline._pack_latents(packs),
            timestep=timesteps / self.noise.timesteps,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=devices.send(self._pipeline._prepare_text_ids(text[:1]), self.device),
            img_ids=devices.send(self._pipeline._prepare_latent_ids(packs[:1]), self.device),
            return_dict=False,
        )[0]
        return self._unpack(prediction, *noisy.shape[-2:])

    def _unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        packs = packed.transpose(1, 2).reshape(len(packed), -1, height // 2, width // 2)
        latents: Tensor = self._pipeline._unpatchify_latents(packs)
        return latents

    def _scale(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        center, spread = self._statistics()
        pack, unpack = self._pipeline._patchify_latents, self._pipeline._unpatchify_latents
        return unpack((pack(mean) - center) / spread), unpack(pack(std) / spread)

    def _unscale(self, latents: Tensor) -> Tensor:
        center, spread = self._statistics()
        packs: Tensor = self._pipeline._patchify_latents(latents) * spread + center
        unpacked: Tensor = self._pipeline._unpatchify_latents(packs)
        return unpacked

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [1, 4 * c, 1, 1] of the VAE's packed latents."""
        vae = self._pipeline.vae
        center, variance = vae.bn.running_mean, vae.bn.running_var
        return center.view(1, -1, 1, 1), torch.sqrt(variance.view(1, -1, 1, 1) + vae.config.batch_norm_eps)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt, and those that the pipeline reads beside the words of its template."""
        tokenizer = self._pipeline.tokenizer
        messages = [{"role": "user", "content": ""}]
        template = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(tokenizer(prompt).input_ids), TOKENS - len(tokenizer(template).input_ids)
