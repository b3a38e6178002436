"""Captions by Florence-2 in transformers' own class: one to many sentences, chosen by a task token."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds
from trainer.captioning.loading import Untyped, load_known
from trainer.captioning.run import CaptionConfig


@dataclass(frozen=True)
class Florence:
    """A Florence-2 with a task."""

    model: Untyped
    processor: Untyped
    task: str
    tokens: int

    def __call__(self, image: Image.Image) -> str:
        """Return the most likely answer of three beams, as the model's card has it."""
        inputs = self.processor(text=self.task, images=image, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, num_beams=3, do_sample=False)
        return str(self.processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()


def load(folder: Path, settings: CaptionConfig, device: torch.device) -> Florence:
    """Load a Florence-2."""
    model = load_known(kinds.FLORENCE, folder, device)
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Florence(model, processor, settings.task_token, settings.tokens)
