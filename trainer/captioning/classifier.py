"""Tags by image classifiers of transformers: each class is a tag. Captions have `long hair` for `long_hair`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds
from trainer.captioning.loading import load_known
from trainer.captioning.run import CaptionConfig
from trainer.devices import Untyped

SMILEY = 3  # characters; the underscore of a tag that is no longer belongs to it, as in ^_^


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
            return join_tags([(names[best], 1.0)], self.blacklist)
        probabilities = logits.sigmoid().tolist()
        chosen = [(names[number], value) for number, value in enumerate(probabilities) if value > self.threshold]
        return join_tags(chosen, self.blacklist)


def load_classifier(folder: Path, settings: CaptionConfig, device: torch.device) -> Classifier:
    """Load an image classifier."""
    model = load_known(kinds.CLASSIFIER, folder, device)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return Classifier(model, processor, settings.threshold, parse_tags(settings.blacklist))


def plain_tag(tag: str) -> str:
    """Return a tag as it stands in a caption."""
    return tag.replace("_", " ") if len(tag) > SMILEY else tag


def parse_tags(text: str) -> frozenset[str]:
    """Return the tags of a comma-separated list, for `join_tags`."""
    return frozenset(plain_tag(tag.strip()).lower() for tag in text.split(",") if tag.strip())


def join_tags(probabilities: Iterable[tuple[str, float]], blacklist: frozenset[str]) -> str:
    """Return a caption of tags, the most likely first, without those of the blacklist."""
    ordered = sorted(probabilities, key=lambda pair: -pair[1])
    names = (plain_tag(tag) for tag, _probability in ordered)
    return ", ".join(name for name in names if name.lower() not in blacklist)
