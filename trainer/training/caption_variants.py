"""The texts that can go with a picture: its captions, one or several, in one or several orders of their tags."""

import torch

from trainer.config import TrainConfig
from trainer.data import dataset
from trainer.data.dataset import Example
from trainer.rng import generator


def texts(example: Example, config: TrainConfig, trigger: str) -> tuple[str, ...]:
    """All texts that are drawn from for a picture, each with the trigger; the first is the caption as it was written.

    With tags shuffled, there are `captions.orders` of them for each caption. They follow from seed and caption, so
    that all can be encoded beforehand.
    """
    settings = config.captions
    written = dataset.read_captions(example.path) if settings.alternatives else (example.caption,)
    found = [dataset.with_trigger(one, trigger) for one in written or ("",)]
    if settings.shuffle:
        found = [order for one in found for order in orders(one, settings.keep, settings.orders, config.seed)]
    return tuple(found)


def orders(caption: str, keep: int, count: int, seed: int) -> list[str]:
    """A caption in `count` orders of its tags, of which the first `keep` stay in front; the first order is its own."""
    tags = [part.strip() for part in caption.split(",")]
    found = [caption]
    for number in range(1, count):
        places = torch.randperm(len(tags[keep:]), generator=generator(seed, caption, number, "order")).tolist()
        found.append(", ".join(tags[:keep] + [tags[keep:][place] for place in places]))
    return found
