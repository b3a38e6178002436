"""Captions by models that describe an image in a sentence, without a prompt: BLIP, BLIP-2, GIT."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds
from trainer.captioning.loading import Untyped, load_known
from trainer.captioning.run import CaptionConfig


@dataclass(frozen=True)
class Describer:
    """A model that describes images."""

    model: Untyped
    processor: Untyped
    tokens: int

    def __call__(self, image: Image.Image) -> str:
        """Return the most likely description of three beams."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, num_beams=3, do_sample=False)
        return str(self.processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()


def load(folder: Path, settings: CaptionConfig, device: torch.device) -> Describer:
    """Load a model that describes images."""
    model = load_known(kinds.DESCRIBER, folder, device)
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Describer(model, processor, settings.tokens)
