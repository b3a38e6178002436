"""Tags by image classifiers of transformers: each class is a tag."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds, tags
from trainer.captioning.loading import Untyped, load_known
from trainer.captioning.run import CaptionConfig


@dataclass(frozen=True)
class Classifier:
    """An image classifier."""

    model: Untyped
    processor: Untyped
    threshold: float
    blacklist: frozenset[str]

    def __call__(self, image: Image.Image) -> str:
        """Return the tags above the threshold; if the classes exclude each other, the most likely one."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device, self.model.dtype)
        logits = self.model(**inputs).logits[0].float()
        names: Mapping[int, str] = self.model.config.id2label
        if self.model.config.problem_type == "single_label_classification":
            best = int(logits.argmax())
            return tags.join([(names[best], 1.0)], self.blacklist)
        probabilities = logits.sigmoid().tolist()
        chosen = [(names[number], value) for number, value in enumerate(probabilities) if value > self.threshold]
        return tags.join(chosen, self.blacklist)


def load(folder: Path, settings: CaptionConfig, device: torch.device) -> Classifier:
    """Load an image classifier."""
    model = load_known(kinds.CLASSIFIER, folder, device)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Classifier(model, processor, settings.threshold, tags.parse(settings.blacklist))
