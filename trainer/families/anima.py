"""Anima, CircleStone Labs 2026, https://huggingface.co/circlestone-labs/Anima: Cosmos' transformer, and Qwen3.

The image looks at 512 embeddings: one for each of T5's words of a text, which a model of its own makes of Qwen3's last
states, and zeros. Latents and VAE are those of Qwen-Image (diffusers 0.42, `modular_pipelines/anima`).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Model, T5TokenizerFast

from trainer.base_models.detect import Base
from trainer.devices import Untyped
from trainer.families.family import Conditioning, Family
from trainer.families.files.loading import Pipeline
from trainer.families.noise import FlowNoise

TOKENS = 512  # of a text that each tokenizer reads


class AnimaPipeline(DiffusionPipeline, AnimaLoraLoaderMixin):  # type: ignore[misc] # both are untyped
    """Anima's parts, and latents from embeddings of texts; diffusers has only the blocks of such a pipeline."""

    config_name = "modular_model_index.json"

    def __init__(  # noqa: PLR0913 - diffusers reads here which parts there are
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLQwenImage,
        text_encoder: Qwen3Model,
        tokenizer: Qwen2Tokenizer,
        t5_tokenizer: T5TokenizerFast,
        text_conditioner: AnimaTextConditioner,
        transformer: CosmosTransformer3DModel,
    ) -> None:
        super().__init__()
        parts = {"text_encoder": text_encoder, "tokenizer": tokenizer, "t5_tokenizer": t5_tokenizer}
        parts |= {"text_conditioner": text_conditioner, "transformer": transformer}
        self.register_modules(scheduler=scheduler, vae=vae, **parts)
        self.vae_scale_factor = 2 ** len(vae.temperal_downsample)
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 * self.vae_scale_factor)

    @classmethod
    def load_config(cls, *arguments: Untyped, **options: Untyped) -> dict[str, Any]:
        """Return library and class of each part: an index of blocks also says where each was published."""
        index = super().load_config(*arguments, **options)
        parts = {name: index[name][:2] for name in inspect.signature(cls).parameters if name in index}
        return {"_class_name": index["_class_name"], **parts}

    @torch.no_grad()
    def __call__(
        self, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, **options: Untyped
    ) -> ImagePipelineOutput:
        """Generate scaled latents [1, c, 1, h, w]; options are those of other pipelines, a guidance of 1 is none."""
        steps, guidance = options["num_inference_steps"], options["guidance_scale"]
        sides = (options[name] // self.vae_scale_factor for name in ("height", "width"))
        shape, device = (1, self.transformer.config.in_channels, 1, *sides), self.transformer.device
        latents = randn_tensor(shape, generator=options["generator"], device=device)
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=device)
        report = options.get("callback_on_step_end")
        for step, timestep in enumerate(self.scheduler.timesteps):
            predicted = self._predict(latents, timestep, prompt_embeds)
            if guidance != 1:
                other = self._predict(latents, timestep, negative_prompt_embeds)
                predicted = other + guidance * (predicted - other)
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            if report:
                report(self, step, timestep, {})
        return ImagePipelineOutput(images=latents)

    def _predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        model, share = self.transformer, timestep / self.scheduler.config.num_train_timesteps
        predicted: Tensor = model(latents.to(model.dtype), share[None], text.to(model.dtype), return_dict=False)[0]
        return predicted.float()


class Anima(Family):
    """An Anima model, frozen."""

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        shift = float(pipeline.scheduler.config.shift)
        self.noise = FlowNoise(lambda _shape: shift)
        # It is told which part of an image is padding: none. With torchvision it would resize a mask in each step.
        pipeline.transformer.register_to_config(concat_padding_mask=False)
        pipeline.transformer.patch_embed.register_forward_pre_hook(_with_mask)

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return self.generate_from_prompts(prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from encoded prompts; sides are rounded down to whole tokens."""
        return super().sample(prompt, negative, **options | self._sides(options)).squeeze(2)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts as the pipeline does: embeddings [b, 512, width] of T5's words, and zeros behind them."""
        return {"text": torch.cat([self._encode(prompt) for prompt in prompts])}

    def _encode(self, prompt: str) -> Tensor:
        """Return the embeddings [1, 512, width] of a prompt, which do not depend on others beside it."""
        pipeline, options = self._pipeline, {"max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        words = pipeline.t5_tokenizer(prompt, **options).input_ids.to(self.device)
        ids = pipeline.tokenizer(prompt, **options).input_ids.long().to(self.device)
        if ids.shape[1]:
            states = pipeline.text_encoder(ids).last_hidden_state
        else:  # of no word, one that says nothing
            states = torch.zeros(1, 1, pipeline.text_encoder.config.hidden_size, device=self.device)
        embeddings: Tensor = pipeline.text_conditioner(states.to(pipeline.text_conditioner.dtype), words)
        return embeddings

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the transformer's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; no sizes."""
        frames, shares = noisy.to(self.dtype).unsqueeze(2), timesteps / self.noise.timesteps
        output: Tensor = self.denoiser(frames, shares, conditioning["text"].to(self.dtype), return_dict=False)[0]
        return output.squeeze(2)

    def prompt_encoders(self) -> dict[str, nn.Module]:
        """Return the modules that encode prompts, by name: Qwen3, and the one that reads its states."""
        if self._pipeline.text_encoder is None:
            return {}
        return {**super().prompt_encoders(), "text_conditioner": self._pipeline.text_conditioner}

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without their end by the tokenizer that makes more, and those that are read."""
        counts = (len(self._pipeline.tokenizer(prompt).input_ids), len(self._pipeline.t5_tokenizer(prompt).input_ids))
        return max(counts[0], counts[1] - 1), TOKENS - 1


def _with_mask(_embedding: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put zeros behind the channels of latents [b, c, t, h, w]: nothing of an image is padding."""
    (latents,) = inputs
    return (torch.cat([latents, torch.zeros_like(latents[:, :1])], dim=1),)
