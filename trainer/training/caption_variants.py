"""Caption variants of an image: its captions, one or several, with their tags in one or several orders."""

import torch

from trainer.config import TrainConfig
from trainer.data.captions import read_captions, with_trigger
from trainer.data.dataset import Example
from trainer.rng import generator


def texts(example: Example, config: TrainConfig) -> tuple[str, ...]:
    """Return all captions that are sampled for an image, each with its trigger; the first is the one in its file.

    With shuffled tags, there are `captions.shuffles` of each caption. They follow from seed and caption, so that all
    can be encoded beforehand.
    """
    settings = config.captions
    captions = read_captions(example.path) if settings.multiple else (example.caption,)
    variants = [with_trigger(caption, example.trigger) for caption in captions or ("",)]
    if settings.shuffle:
        variants = [
            variant
            for caption in variants
            for variant in shuffles(caption, settings.keep_tokens, settings.shuffles, config.seed)
        ]
    return tuple(variants)


def shuffles(caption: str, keep: int, count: int, seed: int) -> list[str]:
    """Return `count` orders of a caption's tags, the first `keep` of which stay in front; the first is its own."""
    tags = [tag.strip() for tag in caption.split(",")]
    variants = [caption]
    for number in range(1, count):
        order = torch.randperm(len(tags[keep:]), generator=generator(seed, caption, number, "order")).tolist()
        variants.append(", ".join(tags[:keep] + [tags[keep:][index] for index in order]))
    return variants
