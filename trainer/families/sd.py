"""Stable Diffusion 1.x and 2.x, Rombach et al. 2022, https://arxiv.org/abs/2112.10752: a UNet, a VAE, a text encoder.

2.x has another text encoder (OpenCLIP-H) and comes in two variants that look alike: one predicts noise, at 512 x 512
pixels, the other v, at 768 x 768.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from trainer import devices
from trainer.base_models.detect import Base
from trainer.base_models.spec import PredictionType
from trainer.devices import Untyped
from trainer.families.family import Conditioning, Family
from trainer.families.files import loading
from trainer.families.files.loading import Pipeline
from trainer.families.noise import DiscreteNoise


class SD(Family):
    """A Stable Diffusion 1.x or 2.x model, frozen."""

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        self._scheduler = pipeline.scheduler
        self._side = pipeline.unet.config.sample_size
        self._skips: list[RemovableHandle] = []
        self.set_prediction_type(base.prediction_type or pipeline.scheduler.config.prediction_type)

    def set_prediction_type(self, predicts: PredictionType) -> None:
        """Take the UNet's output as noise or as v, in training and in sampling."""
        scheduler = loading.scheduler_for(self._scheduler, predicts, zero_snr=self.base.zero_snr)
        self._pipeline.scheduler = scheduler
        self.noise = DiscreteNoise(scheduler.alphas_cumprod.to(self.device), predicts)
        if self._single_file:  # its config is that of the family's first variant
            native = self.spec.variants
            self._pipeline.unet.register_to_config(sample_size=self._side * native[predicts] // native[self.spec.first])

    def set_clip_skip(self, clip_skip: int) -> None:
        """Take the text encoder's output at this layer from its end; 2.x has none to skip, as its last is left out."""
        for hook in self._skips:
            hook.remove()
        layers = self._pipeline.text_encoder.config.num_hidden_layers
        used = layers
        if self.spec.clip_skip:
            used = max(1, layers + 1 - clip_skip)
        self._skips = loading.skip_layers(self._pipeline.text_encoder, after=used)
        self.idle = tuple(f"lora_te_text_model_encoder_layers_{layer}_" for layer in range(used, layers))

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts to the text encoder's hidden states [b, chunks * tokens, width]; longer ones are cut off."""
        tokens = tokenize(self._pipeline.tokenizer, prompts, chunks)
        hidden = self.text_encoders["lora_te"](devices.send(tokens, self.device))[0]
        return {"text": hidden.reshape(len(prompts), -1, hidden.shape[-1])}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]; it takes no sizes."""
        text = conditioning["text"].to(self.dtype)
        prediction: Tensor = self.denoiser(noisy.to(self.dtype), timesteps, text, return_dict=False)[0]
        return prediction


def tokenize(tokenizer: Untyped, prompts: Sequence[str], chunks: int) -> Tensor:
    """Return token ids [b * chunks, tokens]: a prompt's tokens in chunks, each with start and end tokens and padded.

    The caller puts the hidden states of the chunks side by side, as programs do that take prompts of any length.
    """
    length = tokenizer.model_max_length - 2
    rows = []
    for ids in tokenizer(list(prompts), add_special_tokens=False).input_ids:
        for start in range(0, chunks * length, length):
            row = [tokenizer.bos_token_id, *ids[start : start + length], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length + 2 - len(row)))
    return torch.tensor(rows)
