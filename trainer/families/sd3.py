"""Stable Diffusion 3 and 3.5, Esser et al. 2024, https://arxiv.org/abs/2403.03206: a transformer, three text encoders.

Text and image are one sequence, with weights of their own (section 4). T5, the third text encoder, may be missing: it
was dropped at random in training (section 5.3.3), and zeros take the place of its embeddings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import PredictionType
from trainer.families import loading, text_encoder_loading
from trainer.families.family import Conditioning
from trainer.families.loading import Pipeline
from trainer.families.noise import FlowNoise

T5_TOKENS, MOST_T5_TOKENS = 256, 512  # that the pipeline reads, and that T5 can read


class SD3:
    """A Stable Diffusion 3 or 3.5 model, frozen."""

    denoiser_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    idle: tuple[str, ...] = ()

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device) -> None:
        self._pipeline = pipeline
        self.base = base
        self.spec = FAMILIES[base.family]
        self.device = device
        self.denoiser: nn.Module = pipeline.transformer
        self.vae = pipeline.vae
        self.text_encoders: dict[str, nn.Module] = {
            "lora_te1": pipeline.text_encoder,
            "lora_te2": pipeline.text_encoder_2,
        }
        shift = float(pipeline.scheduler.config.shift)
        self.noise = FlowNoise(lambda _shape: shift)

    @classmethod
    def load(cls, path: Path, base: Base, vae: Path | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a base model from a path into main memory, with T5 if it is there; nothing is unpickled.

        The VAE at the other path, if there is one, is taken in place of the base model's own.

        Raises:
            UserError: files are missing or damaged.
        """
        has_t5 = text_encoder_loading.has_t5(path, FAMILIES[base.family])
        missing = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
        return cls(loading.load(path, base, vae, dtype, **missing), base, device)

    def set_prediction_type(self, predicts: PredictionType) -> None:
        """Ignore it: all models of the family predict the direction to the noise."""

    def set_clip_skip(self, clip_skip: int) -> None:
        """Ignore it: both CLIP encoders are always read at their penultimate layer."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of an image at its native resolution."""
        return loading.latent_shape(self._pipeline)

    def module_name(self, path: str) -> str:
        """Return the name of a module of the transformer in adapter files: its path."""
        return path.replace(".", "_")

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return loading.generate_latents(self._pipeline, prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Any) -> Tensor:  # noqa: ANN401 - untyped
        """Generate scaled latents [1, c, h, w] from two encoded prompts; the options are those of a pipeline."""
        return loading.sample(self._pipeline, prompt, negative, options)

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
        dtype = next(self.denoiser.parameters()).dtype
        prediction: Tensor = self.denoiser(
            hidden_states=noisy.to(dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning["text"].to(dtype),
            pooled_projections=conditioning["pooled"].to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without start and end, and those that the encoder of the most can take."""
        if self._pipeline.tokenizer_3 is not None:
            tokenizer, most = self._pipeline.tokenizer_3, T5_TOKENS - 1
        else:
            tokenizer, most = self._pipeline.tokenizer, self._pipeline.tokenizer.model_max_length - 2
        return len(tokenizer(prompt, add_special_tokens=False).input_ids), most

    def pipeline(self) -> Pipeline:
        """Return the live model as a diffusers pipeline."""
        return self._pipeline

    def prompt_encoders(self) -> dict[str, nn.Module]:
        """Return the modules that encode prompts, by name: the two CLIP encoders, and T5 if it is there."""
        t5 = self._pipeline.text_encoder_3
        return self.text_encoders if t5 is None else {**self.text_encoders, "t5": t5}

    def encoders(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are cached, by name."""
        return {"vae": self.vae, **self.prompt_encoders()}
