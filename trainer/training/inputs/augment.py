"""Augmented views of an image: mirrored, cropped, on another background; their pixels and masks; and its captions."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.config.data import CaptionsConfig
from trainer.data.captions import contains_trigger, with_trigger
from trainer.data.dataset import Example
from trainer.rng import generator

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
COLORS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}


@dataclass(frozen=True)
class View:
    """One view of an image: mirrored or not, the part it shows as shares of the image, and the background."""

    flip: bool = False
    part: Box = WHOLE
    background: str = COLORS["white"]

    def key(self) -> tuple[str, ...]:
        """Return the view's name in the tensor cache."""
        if self == View(self.flip):
            return (str(self.flip),)
        return str(self.flip), str(self.part), self.background


def views(content: str, config: TrainConfig, *, transparent: bool) -> list[View]:
    """List all views of an image; crops and colors follow from its content hash, so that all runs share them."""
    settings = config.images
    flips = (False, True) if settings.flip else (False,)
    parts: list[Box] = [WHOLE]
    for number in range(settings.crops):
        side, x, y = torch.rand(3, generator=generator("crop", content, number)).tolist()
        side = settings.min_crop + (1 - settings.min_crop) * side
        left, top = (1 - side) * x, (1 - side) * y
        parts.append((left, top, left + side, top + side))
    backgrounds = [COLORS["white"]]
    if transparent and settings.background == "random":
        colors = torch.randint(256, (settings.backgrounds, 3), generator=generator("background", content)).tolist()
        backgrounds = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colors]
    elif transparent:
        backgrounds = [COLORS[settings.background]]
    return [View(flip, part, background) for background in backgrounds for part in parts for flip in flips]


def crop(image: Image.Image, size: Size, view: View) -> Image.Image:
    """Return the part of an image that a view shows, in the shape of its bucket."""
    return image if view.part == WHOLE else image.crop(crop_box(image.width, image.height, size, view))


def crop_box(width: int, height: int, size: Size, view: View) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a view in an image of this size, before it is resized to its bucket."""
    if view.part == WHOLE:
        return 0, 0, width, height
    ratio = size[0] / size[1]
    left, top, right, bottom = view.part
    # The view's share of the largest part of the image that has the bucket's shape.
    crop_width, crop_height = min(width, height * ratio) * (right - left), min(height, width / ratio) * (bottom - top)
    free = max(1e-9, 1 - (right - left))
    x, y = (width - crop_width) * left / free, (height - crop_height) * top / free
    return round(x), round(y), round(x + crop_width), round(y + crop_height)


def size_conditioning(width: int, height: int, size: Size, view: View) -> tuple[int, ...]:
    """Return a view's original height and width, top and left in the resized image, height and width.

    The image is resized as the view is, and mirrored if the view is. Podell et al. 2023,
    https://arxiv.org/abs/2307.01952 (section 2.2).
    """
    x, y, right, bottom = crop_box(width, height, size, view)
    crop_width, crop_height = right - x, bottom - y
    resized, (left, top) = cover(crop_width, crop_height, size)
    left, top = left + round(x * resized[0] / crop_width), top + round(y * resized[1] / crop_height)
    if view.flip:
        left = max(0, round(width * resized[0] / crop_width) - left - size[0])
    return height, width, top, left, size[1], size[0]


def cover(width: int, height: int, size: Size) -> tuple[Size, Size]:
    """Return the size of an image resized to cover `size`, and left and top of its center crop of that size."""
    scale = max(size[0] / width, size[1] / height)
    resized = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    return resized, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2)


def pixels(image: Image.Image, size: Size, *, flip: bool) -> Tensor:
    """Return an image, resized to cover `size` and center-cropped, as [3, height, width] in -1..1."""
    width, height = size
    resized_size, (left, top) = cover(image.width, image.height, size)
    resized = image.resize(resized_size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    array = np.array(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 127.5 - 1
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return tensor.flip(-1).contiguous() if flip else tensor.contiguous()


def mask(image: Image.Image | None, image_size: Size, size: Size, view: View, latents: Tensor) -> Tensor:
    """Return the mask of a view as [1, h, w] in 0..1 at the size of the latents; all ones without a mask."""
    if image is None:
        return torch.ones(1, *latents.shape[-2:])
    cropped = crop(image.resize(image_size).convert("RGB"), size, view)
    gray = (pixels(cropped, size, flip=view.flip)[:1] + 1) / 2
    height, width = latents.shape[-2:]
    return functional.adaptive_avg_pool2d(gray[None], (height, width))[0].clamp(0, 1)


def caption_variants(example: Example, config: TrainConfig) -> tuple[str, ...]:
    """Return all captions that are sampled for an image, each with its trigger; the first is the one in its file.

    With shuffled or dropped tags, there are `captions.shuffles` of each caption. They follow from seed and caption, so
    that all can be encoded beforehand.
    """
    settings = config.captions
    captions = example.text().split("\n") if settings.multiple else [example.caption]
    variants = [with_trigger(caption, example.trigger) for caption in captions]
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
