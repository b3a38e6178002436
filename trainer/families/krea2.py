"""Krea 2, Krea 2026, https://www.krea.ai/blog/krea-2-technical-report: a transformer, and Qwen3-VL.

Text and image are one sequence. Of a text the transformer sees twelve layers of Qwen3-VL, up to its own length, behind
a template that is dropped. Latents and VAE are those of Qwen-Image (diffusers 0.42, `pipelines/krea2`).
"""

from typing import Any

import torch
from torch import Tensor

from trainer import devices
from trainer.base_models.detect import Base
from trainer.devices import Untyped
from trainer.families.family import LENGTHS, Conditioning, stacked, without_padding
from trainer.families.files import loading
from trainer.families.files.loading import Pipeline
from trainer.families.qwen_image import TOKENS, QwenImage


class Krea2(QwenImage):
    """A Krea 2 model, frozen."""

    denoiser_targets = ("to_q", "to_k", "to_v", "to_out.0", "to_gate", "ff.gate", "ff.up", "ff.down")

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        if base.few_step:
            pipeline.register_to_config(is_distilled=True)
        super().__init__(pipeline, base, device, single_file=single_file)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts.

        The pipeline counts guidance from 0, which is none, and takes sides of whole tokens.
        """
        scale, sides = int(self._pipeline.vae_scale_factor), self._sides(options)
        texts = [without_padding(encoded)["text"][0] for encoded in (prompt, negative)]
        rows = stacked({"text": texts})["text"]  # the pipeline has one list of positions for both
        prompts: dict[str, Any] = {}
        for start, row, text in zip(("", "negative_"), rows, texts, strict=True):
            mask = torch.arange(len(row), device=row.device) < len(text)
            prompts |= {f"{start}prompt_embeds": row[None], f"{start}prompt_embeds_mask": mask[None]}
        options |= {**sides, "guidance_scale": options["guidance_scale"] - 1}
        latents = (side // scale for side in sides.values())
        return self._unpack(loading.sample(self._pipeline, prompts, options), *latents)

    def _encode(self, prompt: str) -> Tensor:
        """Return the embedding [tokens, layers, width] of a prompt, which does not depend on others beside it."""
        pipeline, start = self._pipeline, self._pipeline.prompt_template_encode_start_idx
        most = start + TOKENS - pipeline.prompt_template_encode_num_suffix_tokens
        text, end = pipeline.prompt_template_encode_prefix + prompt, pipeline.prompt_template_encode_suffix
        words = pipeline.tokenizer(text, max_length=most, truncation=True).input_ids
        ids = torch.tensor([words + pipeline.tokenizer(end).input_ids], device=self.device)
        states = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states
        return torch.stack([states[layer][0, start:] for layer in pipeline.text_encoder_select_layers], dim=1)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        batch, channels, height, width = noisy.shape
        text = without_padding(conditioning)["text"].to(self.dtype)
        places = self._pipeline.prepare_position_ids(text.shape[1], height // 2, width // 2, torch.device("cpu"))
        prediction: Tensor = self.denoiser(
            hidden_states=self._pipeline._pack_latents(noisy.to(self.dtype), batch, channels, height, width),
            timestep=timesteps / self.noise.timesteps,
            encoder_hidden_states=text,
            encoder_attention_mask=self._mask(conditioning[LENGTHS], text.shape[1]),
            position_ids=devices.send(places, self.device),
            return_dict=False,
        )[0]
        return self._unpack(prediction, height, width)

    def _unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        scale = self._pipeline.vae_scale_factor
        latents: Tensor = self._pipeline._unpack_latents(packed, height * scale, width * scale)
        return latents.squeeze(2)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt, and those that the pipeline reads beside the words of its template."""
        around = self._pipeline.prompt_template_encode_num_suffix_tokens
        return len(self._pipeline.tokenizer(prompt).input_ids), TOKENS - around
