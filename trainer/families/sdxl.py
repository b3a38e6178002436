"""Stable Diffusion XL, Podell et al. 2023, https://arxiv.org/abs/2307.01952: two text encoders, size conditioning.

Its UNet is told how large an image was before it was resized and where it was cropped (section 2.2), so that it learns
from small and cropped images without generating such.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer import devices
from trainer.base_models import layer_names
from trainer.base_models.detect import Base
from trainer.families.family import Conditioning
from trainer.families.files.loading import Pipeline
from trainer.families.sd import SD, tokenize


class SDXL(SD):
    """A Stable Diffusion XL model, frozen."""

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        super().__init__(pipeline, base, device, single_file=single_file)
        # The output of the first encoder's last layer is not used.
        last = pipeline.text_encoder.config.num_hidden_layers - 1
        self.idle = (f"lora_te1_text_model_encoder_layers_{last}_",)
        self._tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)

    def set_clip_skip(self, clip_skip: int) -> None:
        """Ignore it: both encoders are always read at their penultimate layer."""

    def module_name(self, path: str) -> str:
        """Return the name of a module of the UNet in adapter files: the original one, with its own block numbers."""
        unet = self._pipeline.unet
        upsampler = re.match(r"up_blocks\.(\d+)\.upsamplers", path)
        attends = not upsampler or hasattr(unet.up_blocks[int(upsampler[1])], "attentions")
        original = layer_names.original(path, unet.config.layers_per_block + 1, attends=attends)
        return original.replace(".", "_")

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts to both encoders' penultimate hidden states [b, chunks * tokens, width].

        With them goes the second encoder's pooled embedding [b, width] of a prompt's first chunk, as in programs that
        take prompts of any length.
        """
        states = []
        for tokenizer, encoder in zip(self._tokenizers, self.text_encoders.values(), strict=True):
            tokens = devices.send(tokenize(tokenizer, prompts, chunks), self.device)
            output = encoder(tokens, output_hidden_states=True)
            hidden = output.hidden_states[-2]
            states.append(hidden.reshape(len(prompts), -1, hidden.shape[-1]))
        return {"text": torch.cat(states, dim=-1), "pooled": output.text_embeds[::chunks]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        `sizes` [b, 6] of the conditioning: original height and width, top and left of the crop, height and width.
        """
        text, pooled = conditioning["text"].to(self.dtype), conditioning["pooled"].to(self.dtype)
        added = {"text_embeds": pooled, "time_ids": conditioning["sizes"]}  # sizes in fp32: bf16 cannot represent 1023
        prediction: Tensor = self.denoiser(
            noisy.to(self.dtype), timesteps, text, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction
