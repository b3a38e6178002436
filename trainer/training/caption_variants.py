"""Caption variants of an image: its captions, one or several, with their tags in several orders or some left out."""

import torch

from trainer.config import TrainConfig
from trainer.config.data import CaptionsConfig
from trainer.data.captions import contains_trigger, read_captions, with_trigger
from trainer.data.dataset import Example
from trainer.rng import generator


def texts(example: Example, config: TrainConfig) -> tuple[str, ...]:
    """Return all captions that are sampled for an image, each with its trigger; the first is the one in its file.

    With shuffled or dropped tags, there are `captions.shuffles` of each caption. They follow from seed and caption, so
    that all can be encoded beforehand.
    """
    settings = config.captions
    captions = read_captions(example.path) if settings.multiple else ()
    variants = [with_trigger(caption, example.trigger) for caption in captions or (example.caption,)]
    if settings.shuffle or settings.tag_dropout:
        variants = [
            variant
            for caption in variants
            for variant in _tag_variants(caption, example.trigger, settings, config.seed)
        ]
    return tuple(variants)


def _tag_variants(caption: str, trigger: str, settings: CaptionsConfig, seed: int) -> list[str]:
    """Return a caption and variants of it, whose tags after those to keep are shuffled and dropped."""
    tags = [tag.strip() for tag in caption.split(",")]
    kept, others = tags[: settings.keep_tokens], tags[settings.keep_tokens :]
    variants = [caption]
    for number in range(1, settings.shuffles):
        order = list(range(len(others)))
        if settings.shuffle:
            order = torch.randperm(len(others), generator=generator(seed, caption, number, "order")).tolist()
        if settings.tag_dropout:
            shares = torch.rand(len(others), generator=generator(seed, caption, number, "dropped tags")).tolist()
            order = [
                index
                for index in order
                if shares[index] >= settings.tag_dropout or (trigger and contains_trigger(others[index], trigger))
            ]
        variants.append(", ".join(kept + [others[index] for index in order]))
    return variants
