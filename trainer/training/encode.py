"""Precompute VAE latents and text embeddings for a dataset; cached by content hash.

A file's key is a hash of all that its value depends on, so nothing has to be invalidated and deleting the cache is
always safe.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer import paths
from trainer.config import TrainConfig
from trainer.data import buckets, dataset, images
from trainer.data.dataset import Example
from trainer.errors import UserError
from trainer.families import Family, fingerprint, loading, on_device
from trainer.i18n import say
from trainer.rng import generator
from trainer.training import caption_variants, tensor_cache
from trainer.training.batches import Batches, Pool
from trainer.training.tensor_cache import Shelf

Progress = Callable[[str, int, int], None]
Size = tuple[int, int]
WHOLE = Fraction(0)
SMALL = Fraction(3, 4)  # of a resolution: its sides stay multiples of what the VAE makes one value of
DRAWN_IN = 20  # steps of a picture to preserve, however hasty the previews are
COLOURS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}


@dataclass(frozen=True)
class View:
    """One way to see a picture: mirrored or not, which part (left, top, right, bottom as shares), what is behind."""

    flip: bool = False
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    background: str = COLOURS["white"]

    def key(self) -> tuple[str, ...]:
        """Return what names the view in the tensor cache."""
        more = View(self.flip)
        return (str(self.flip),) if self == more else (str(self.flip), str(self.part), self.background)


def build(
    family: Family, examples: Sequence[Example], config: TrainConfig, progress: Progress, share: Fraction = WHOLE
) -> Batches:
    """Encode a data set, or read what is already encoded.

    Args:
        family: the base model.
        examples: pictures and captions.
        config: the run.
        progress: told the name of the phase, how many are done, and of how many.
        share: where this process begins, of several that encode the same; what another has done it only reads.

    Raises:
        UserError: a picture cannot be read, or its latents are not finite; it names the file. Or there are no prior
            pictures.
    """
    marks = {name: fingerprint(module) for name, module in family.encoders().items()}
    precision = loading.encoding_precision(family.pipeline(), family.device)
    marks["vae"] += "" if precision == torch.float32 else f" {precision}"
    shelf = Shelf()
    with on_device(family, *family.encoders().values()):
        batches = _build(_Encoder(family, config, shelf, progress, marks, share), examples)
        if config.training.small_share:
            small = _build(_Encoder(family, config, shelf, progress, marks, share, SMALL), examples)
            batches = replace(batches, small=small)
    return batches


def _build(encoder: "_Encoder", examples: Sequence[Example]) -> Batches:
    config, progress = encoder.config, encoder.progress
    others = dataset.read_prior(config.prior.dataset)
    own = encoder.pool(examples, config.trigger, "")
    prior = encoder.pool(others, "", "prior") if others else None
    conditioning: dict[str, Path] = {}
    wanted = _preservable(own, config)
    if not config.training.text_encoder:
        wanted |= {"", *itertools.chain(*own.texts, *(prior.texts if prior else ()))}
        wanted |= {config.trigger} if config.captions.trigger_only else set()
    for number, text in enumerate(sorted(wanted)):
        progress(say("Encoding captions"), number, len(wanted))
        conditioning[text] = encoder.text(text, examples[0].path.parent)
    drawn = encoder.drawn()
    return Batches(own, prior, conditioning, encoder.store, config, encoder.family.device, drawn)


def _preservable(own: Pool, config: TrainConfig) -> set[str]:
    """All prompts that can be drawn for preservation."""
    if not config.preservation.share:
        return set()
    texts = itertools.chain(*own.texts) if config.trigger else ()
    return {*config.preservation.prompts, *(dataset.without_trigger(one, config.trigger) for one in texts)}


@dataclass(frozen=True)
class _Encoder:
    family: Family
    config: TrainConfig
    store: Shelf
    progress: Progress
    marks: dict[str, str]
    share: Fraction
    scale: Fraction = Fraction(1)  # of the size at which pictures are encoded

    def pool(self, examples: Sequence[Example], trigger: str, name: str) -> Pool:
        """Encode pictures, each in all its views."""
        whole = buckets.buckets([(one.width, one.height) for one in examples], self.config.training.resolution)
        sizes = [(int(self.scale * width), int(self.scale * height)) for width, height in whole]
        seen: dict[int, dict[Path, View]] = {}
        for number in self._order(len(examples)):
            self.progress(say("Encoding pictures"), len(seen), len(examples))
            seen[number] = self._picture(examples[number], sizes[number])
        found = [tuple(seen[number]) for number in range(len(examples))]
        places = [
            tuple(placed(example.width, example.height, size, view) for view in seen[number].values())
            for number, (example, size) in enumerate(zip(examples, sizes, strict=True))
        ]
        shapes = [tuple(self.store.get(first)["mean"].shape) for first, *_ in found]
        texts = [caption_variants.texts(example, self.config, trigger) for example in examples]
        return Pool(found, shapes, texts, self.config.seed, self.config.training.batch_size, name, places)

    def _order(self, count: int) -> list[int]:
        """Numbers from this process's place on and round: so several share the work, and none waits for another."""
        first = int(self.share * count)
        return [*range(first, count), *range(first)]

    def _picture(self, example: Example, size: Size) -> dict[Path, View]:
        data = example.path.read_bytes()
        content = hashlib.sha256(data).hexdigest()
        drawn = dataset.read_mask(example.path) if self.config.objective.masked else b""
        mask_key = (f"mask {hashlib.sha256(drawn).hexdigest()}",) if self.config.objective.masked else ()
        wanted = {"mean", "std"} | ({"mask"} if mask_key else set())
        try:
            opacity = images.opacity(data) if mask_key or self.config.pictures.background != "white" else None
            found = {}
            for view in views(content, self.config, transparent=opacity is not None):
                file = tensor_cache.place(
                    example.path.parent, content, str(size), *view.key(), *mask_key, self.marks["vae"]
                )
                if not self.store.has(file, wanted):
                    image = images.decode(data, view.background)
                    tensors = self._latents(part_of(image, size, view), size, view, example.name)
                    if mask_key:
                        shown = images.decode(drawn).convert("L") if drawn else opacity
                        tensors["mask"] = _mask(shown, image.size, size, view, tensors["mean"])
                    self.store.put(file, tensors)
                found[file] = view
        except UserError as error:
            if example.name in error.message:
                raise
            told = say("{name} cannot be used: {reason}.", name=example.name, reason=error.message)
            raise UserError(told, error.remedy) from None
        return found

    def _latents(self, image: Image.Image, size: Size, view: View, name: str) -> dict[str, Tensor]:
        mean, std = self.family.encode_images(pixels(image, size, flip=view.flip)[None])
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise UserError(
                "The base model cannot encode {name}: its latents are not finite.", "Remove that picture.", name=name
            )
        return {"mean": mean[0].cpu().contiguous(), "std": std[0].cpu().contiguous()}

    def drawn(self) -> dict[str, Path]:
        """Latents [c, h, w] that the base draws from each prompt to preserve: what it meets when asked for them.

        They are kept beside the runs, as they say nothing of a data set and serve all of them.
        """
        settings, look, side = self.config.preservation, self.config.preview, self.config.training.resolution
        if not settings.share or not settings.others:
            return {}
        # A run has its denoiser's fingerprint on record; to hash gigabytes once is enough.
        denoiser = self.config.record.base_sha256 or fingerprint(self.family.denoiser)
        mark = "".join(self.marks.values()) + denoiser
        found = {
            prompt: tensor_cache.place(paths.outputs(), prompt, str(side), str(DRAWN_IN), str(look.guidance), mark)
            for prompt in settings.prompts
        }
        missing = any(not self.store.has(file, {"latents"}) for file in found.values())
        with on_device(self.family, *([self.family.denoiser] if missing else [])):
            for number in self._order(len(found)) if missing else ():
                prompt, file = list(found.items())[number]
                if self.store.has(file, {"latents"}):
                    continue
                self.progress(say("Drawing what to preserve"), number, len(found))
                latents = self.family.draw_latents(
                    prompt, seed=number, steps=DRAWN_IN, guidance=look.guidance, side=side
                )
                self.store.put(file, {"latents": latents.float().cpu().contiguous()})
        return found

    def text(self, text: str, folder: Path) -> Path:
        """Encode a text."""
        chunks = self.config.captions.chunks
        mark = "".join(self.marks[name] for name in self.family.text_encoders) + "+" * (chunks - 1)
        file = tensor_cache.place(folder, hashlib.sha256(text.encode()).hexdigest(), mark)
        if not self.store.has(file, set()):
            with torch.no_grad():
                rows = self.family.encode_prompts([text], chunks)
            self.store.put(file, {key: row[0].float().cpu().contiguous() for key, row in rows.items()})
        return file


def views(content: str, config: TrainConfig, *, transparent: bool) -> list[View]:
    """All views of a picture; crops and colours follow from its content, so that all runs of a data set share them."""
    settings = config.pictures
    flips = (False, True) if settings.flip else (False,)
    parts = [View().part]
    for number in range(settings.crops):
        side, x, y = torch.rand(3, generator=generator("crop", content, number)).tolist()
        side = settings.smallest_crop + (1 - settings.smallest_crop) * side
        left, top = (1 - side) * x, (1 - side) * y
        parts.append((left, top, left + side, top + side))
    backgrounds = [COLOURS.get(settings.background, "")] if transparent else [COLOURS["white"]]
    if transparent and settings.background == "random":
        rows = torch.randint(256, (settings.backgrounds, 3), generator=generator("background", content)).tolist()
        backgrounds = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rows]
    return [View(flip, part, back) for back in backgrounds for part in parts for flip in flips]


def part_of(image: Image.Image, size: Size, view: View) -> Image.Image:
    """The part of a picture that a view shows, in the shape of its bucket (width, height)."""
    return image if view.part == View().part else image.crop(box(image.width, image.height, size, view))


def box(width: int, height: int, size: Size, view: View) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a view shows of a picture before it is cut to the shape of its bucket."""
    if view.part == View().part:
        return 0, 0, width, height
    shape = size[0] / size[1]
    left, top, right, bottom = view.part
    # Of the largest part of the bucket's shape anywhere in the picture, the share that the view takes.
    wide, high = min(width, height * shape) * (right - left), min(height, width / shape) * (bottom - top)
    free = max(1e-9, 1 - (right - left))
    x, y = (width - wide) * left / free, (height - high) * top / free
    return round(x), round(y), round(x + wide), round(y + high)


def placed(width: int, height: int, size: Size, view: View) -> tuple[int, ...]:
    """Return a view's place: original height and width, top and left in the resized image, height and width.

    The picture is resized as the view is, and mirrored if the view is.
    """
    x, y, right, bottom = box(width, height, size, view)
    wide, high = right - x, bottom - y
    whole, (left, top) = covering(wide, high, size)
    left, top = left + round(x * whole[0] / wide), top + round(y * whole[1] / high)
    if view.flip:
        left = max(0, round(width * whole[0] / wide) - left - size[0])
    return height, width, top, left, size[1], size[0]


def covering(width: int, height: int, size: Size) -> tuple[Size, Size]:
    """Width and height of a picture resized to cover `size`, and left and top of its middle part of that size."""
    scale = max(size[0] / width, size[1] / height)
    wide, high = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    return (wide, high), ((wide - size[0]) // 2, (high - size[1]) // 2)


def pixels(image: Image.Image, size: Size, *, flip: bool) -> Tensor:
    """A picture resized to cover `size` (width, height), cropped in the middle, as [3, height, width] in -1..1."""
    width, height = size
    whole, (left, top) = covering(image.width, image.height, size)
    resized = image.resize(whole, Image.Resampling.LANCZOS, reducing_gap=3.0)
    array = np.array(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 127.5 - 1
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return tensor.flip(-1).contiguous() if flip else tensor.contiguous()


def _mask(shown: Image.Image | None, picture: Size, size: Size, view: View, latents: Tensor) -> Tensor:
    """Return the mask of a view as [1, h, w] in 0..1 at the size of the latents; all ones without a mask."""
    if shown is None:
        return torch.ones(1, *latents.shape[-2:])
    whole = part_of(shown.resize(picture).convert("RGB"), size, view)
    grey = (pixels(whole, size, flip=view.flip)[:1] + 1) / 2
    height, width = latents.shape[-2:]
    return functional.adaptive_avg_pool2d(grey[None], (height, width))[0].clamp(0, 1)
