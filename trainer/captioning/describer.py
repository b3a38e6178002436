"""Captions by models that describe an image: BLIP, BLIP-2 and GIT in a sentence, Florence-2 as a task token says."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds
from trainer.captioning.loading import load_known
from trainer.captioning.run import CaptionConfig
from trainer.devices import Untyped


@dataclass(frozen=True)
class Describer:
    """A model that describes images."""

    model: Untyped
    processor: Untyped
    tokens: int
    task: str | None = None

    def __call__(self, image: Image.Image) -> str:
        """Return the most likely description of three beams, for Florence-2 as its card has it."""
        inputs = self.processor(text=self.task, images=image, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, num_beams=3, do_sample=False)
        return str(self.processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()


def load_describer(folder: Path, settings: CaptionConfig, device: torch.device) -> Describer:
    """Load a model that describes images."""
    return Describer(load_known(kinds.DESCRIBER, folder, device), _processor(folder), settings.tokens)


def load_florence(folder: Path, settings: CaptionConfig, device: torch.device) -> Describer:
    """Load a Florence-2 in transformers' own class."""
    model = load_known(kinds.FLORENCE, folder, device)
    return Describer(model, _processor(folder), settings.tokens, settings.task_token)


def _processor(folder: Path) -> Untyped:
    return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
