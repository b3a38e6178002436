"""Facts about a dataset that may be published: numbers, sizes and words, no name of a file."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data import buckets, dataset
from trainer.data.buckets import Size
from trainer.data.captions import caption_file, without_trigger
from trainer.data.dataset import Example
from trainer.errors import UserError

WORDS = 30
_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")
_FILLING = frozenset({"and", "are", "for", "from", "has", "her", "his", "its", "the", "with"})


@dataclass(frozen=True)
class DatasetFacts:
    """Numbers of images and of those with a caption, sizes and buckets with their numbers, and the captions' words.

    `words` are the most frequent ones with the number of captions that have them, without the trigger word. `changed`
    tells whether an image or a caption was changed or added since the run began.
    """

    images: int
    captioned: int
    smallest: Size
    largest: Size
    buckets: Mapping[Size, int]
    words: Sequence[tuple[str, int]]
    changed: bool


def of(config: TrainConfig, begun: datetime | None) -> DatasetFacts | None:
    """Return the facts about the dataset of a run that began at a time; None if it is no longer here, or empty."""
    try:
        examples = dataset.read(dataset.find_folder(config.dataset))
    except UserError:
        return None
    if not examples:
        return None
    sizes = [(example.width, example.height) for example in examples]
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    counts = Counter(buckets.buckets(sizes, config.training.resolution))
    return DatasetFacts(
        images=len(examples),
        captioned=sum(bool(example.caption) for example in examples),
        smallest=by_area[0],
        largest=by_area[-1],
        buckets=dict(counts.most_common()),
        words=_words(examples, config.trigger),
        changed=begun is not None and any(_changed(example.path) > begun.timestamp() for example in examples),
    )


def _words(examples: Sequence[Example], trigger: str) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for example in examples:
        caption = without_trigger(example.caption, trigger).lower()
        counts.update(set(_WORD.findall(caption)) - _FILLING)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS]


def _changed(image: Path) -> float:
    """Return the Unix time when an image or its caption was last changed."""
    files = (file for file in (image, caption_file(image)) if file.is_file())
    return max((file.stat().st_mtime for file in files), default=0.0)
