"""What the frozen parts of the base make of a data set, computed once and kept by content; and the batches from it.

A file's key is a hash of all that its value depends on, so nothing has to be invalidated and deleting the cache is
always safe.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from trainer import dataset, files, ingest
from trainer.config import TrainConfig
from trainer.dataset import Example
from trainer.errors import UserError
from trainer.families import Conditioning, Family, fingerprint
from trainer.randomness import generator

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Batch:
    """The inputs of one pass: latents' mean and standard deviation [b, c, h, w], conditioning, captions.

    `preserved` are prompts under which the adapter has to predict what the base predicts, about `preserved_latents`
    [k, c, h, w]: pictures that the base drew from them, or the batch's own with their trigger taken out. Conditioning
    is None where captions must be encoded in the step, because the text encoder is trained. `sizes` [b, 6] is part of
    any conditioning: original height and width, top and left of the crop, height and width.
    """

    mean: Tensor
    std: Tensor
    conditioning: Conditioning | None
    captions: tuple[str, ...]
    preserved: tuple[str, ...] = ()
    preserved_conditioning: Conditioning | None = None
    preserved_latents: Tensor | None = None
    sizes: Tensor | None = None


@dataclass(frozen=True)
class Batches:
    """All batches of a run; which examples are in one follows from (seed, step, micro-step) alone."""

    latents: list[tuple[dict[str, Tensor], ...]]  # by example: as it is, and mirrored if wanted
    conditioning: dict[str, Conditioning]  # by caption; empty if the text encoder is trained
    captions: list[str]
    config: TrainConfig
    device: torch.device
    drawn: dict[str, Tensor] = field(default_factory=dict)  # what the base draws, by preservation prompt

    def at(self, step: int, micro: int) -> Batch:
        """The batch of a micro-step: a pure function of its place."""
        training, seed = self.config.training, self.config.seed
        indices = self._indices(step * training.accumulation + micro)
        rng = generator(seed, step, micro, "data")
        views = [
            self.latents[index][int(torch.randint(len(self.latents[index]), (), generator=rng))] for index in indices
        ]
        kept = torch.rand(len(indices), generator=rng) >= training.caption_dropout
        captions = tuple(self.captions[index] if keep else "" for index, keep in zip(indices, kept, strict=True))
        if training.trigger_only and self.config.trigger:
            alone = torch.rand(len(indices), generator=rng) < training.trigger_only
            captions = tuple(self.config.trigger if one else text for one, text in zip(alone, captions, strict=True))
        preserved = self._preserved(step * training.accumulation + micro, [self.captions[index] for index in indices])
        sizes = torch.stack([view["sizes"] for view in views]).to(self.device)
        mean = torch.stack([view["mean"] for view in views])
        # Any size will do, as the base's own answer is the target; so those of other buckets are brought to this one.
        kept_latents = [
            functional.interpolate(self.drawn[text][None], mean.shape[-2:])[0] if text in self.drawn else own
            for text, own in zip(preserved, mean, strict=False)
        ]
        return Batch(
            mean.to(self.device),
            torch.stack([view["std"] for view in views]).to(self.device),
            self._conditioning_of(captions, sizes),
            captions,
            preserved,
            self._conditioning_of(preserved, sizes),
            torch.stack(kept_latents).to(self.device) if kept_latents else None,
            sizes,
        )

    def _conditioning_of(self, texts: Sequence[str], sizes: Tensor) -> Conditioning | None:
        rows = [self.conditioning[text] for text in texts] if self.conditioning else []
        if not rows:
            return None
        stacked = {key: torch.stack([row[key] for row in rows]).to(self.device) for key in rows[0]}
        return {**stacked, "sizes": sizes[: len(texts)]}

    def _preserved(self, number: int, captions: Sequence[str]) -> tuple[str, ...]:
        """The prompts under which the first pictures of the `number`-th batch are to stay as the base draws them."""
        settings, per_batch = self.config.preservation, self.config.preservation.share * len(captions)
        count = int((number + 1) * per_batch) - int(number * per_batch)
        rng = generator(self.config.seed, number, "preservation")
        prompts = []
        for caption in captions[:count]:
            other, pick = torch.rand(2, generator=rng).tolist()
            if other < settings.others and settings.prompts:
                prompts.append(settings.prompts[int(pick * len(settings.prompts))])
            else:
                prompts.append(dataset.without_trigger(caption, self.config.trigger))
        return tuple(prompts)

    def _indices(self, number: int) -> list[int]:
        """Examples of the `number`-th batch. In an epoch each comes once; examples of one bucket share a batch.

        A batch that a bucket's last examples do not fill is filled up from the bucket's order in the next epoch.
        """
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, views in enumerate(self.latents):
            buckets.setdefault(tuple(views[0]["mean"].shape), []).append(index)
        size = self.config.training.batch_size
        per_epoch = sum(-(-len(members) // size) for members in buckets.values())
        epoch, position = divmod(number, per_epoch)
        plan = []
        for shape, members in sorted(buckets.items()):
            order: list[int] = []
            round_ = 0
            while len(order) < -(-len(members) // size) * size:
                rng = generator(self.config.seed, epoch, round_, str(shape), "order")
                order += [members[int(place)] for place in torch.randperm(len(members), generator=rng)]
                round_ += 1
            plan += [order[start : start + size] for start in range(0, -(-len(members) // size) * size, size)]
        shuffled = torch.randperm(len(plan), generator=generator(self.config.seed, epoch, "batches"))
        return plan[int(shuffled[position])]


def build(family: Family, examples: Sequence[Example], config: TrainConfig, progress: Progress) -> Batches:
    """Encode a data set, or read what is already encoded.

    Args:
        family: the base model.
        examples: pictures and captions.
        config: the run.
        progress: told the name of the phase, how many are done, and of how many.

    Raises:
        UserError: a picture cannot be read, or its latents are not finite; it names the file.
    """
    marks = {name: fingerprint(module) for name, module in family.encoders().items()}
    flips = (False, True) if config.training.flip else (False,)
    latents = []
    for number, example in enumerate(examples):
        progress("Encoding pictures", number, len(examples))
        latents.append(
            tuple(_picture_latents(family, example, config.training.resolution, flip, marks["vae"]) for flip in flips)
        )
    captions = [dataset.with_trigger(example.caption, config.trigger) for example in examples]
    conditioning: dict[str, Conditioning] = {}
    if not config.training.text_encoder:
        texts = sorted({*captions, "", config.trigger} | _preservable(captions, config))
        mark = "".join(marks[name] for name in family.text_encoders)
        for number, caption in enumerate(texts):
            progress("Encoding captions", number, len(texts))
            conditioning[caption] = _caption_conditioning(family, caption, examples[0].path.parent, mark)
    drawn = _base_pictures(family, config, examples[0].path.parent, "".join(marks.values()), progress)
    return Batches(latents, conditioning, captions, config, family.device, drawn)


def _base_pictures(
    family: Family, config: TrainConfig, folder: Path, mark: str, progress: Progress
) -> dict[str, Tensor]:
    """Latents [c, h, w] that the base draws from each prompt to preserve: what it meets when it is asked for them."""
    settings, look = config.preservation, config.preview
    if not settings.share or not settings.others:
        return {}
    mark += fingerprint(family.denoiser)
    side = config.training.resolution
    found = {}
    for number, prompt in enumerate(settings.prompts):
        progress("Drawing what to preserve", number, len(settings.prompts))
        place = _place(folder, prompt, str(side), str(look.steps), str(look.guidance), mark)
        known = _read(place, {"latents"})
        if known is None:
            latents = family.draw_latents(prompt, seed=number, steps=look.steps, guidance=look.guidance, side=side)
            known = _keep(place, {"latents": latents.float().cpu().contiguous()})
        found[prompt] = known["latents"]
    return found


def _preservable(captions: Sequence[str], config: TrainConfig) -> set[str]:
    """All prompts that can be drawn for preservation."""
    if not config.preservation.share:
        return set()
    return {*config.preservation.prompts, *(dataset.without_trigger(one, config.trigger) for one in captions)}


def _picture_latents(family: Family, example: Example, resolution: int, flip: bool, mark: str) -> dict[str, Tensor]:
    data = example.path.read_bytes()
    size = dataset.bucket(example.width, example.height, resolution)
    place = _place(example.path.parent, hashlib.sha256(data).hexdigest(), str(size), str(flip), mark)
    sizes = {"sizes": _sizes(example, size)}
    known = _read(place, {"mean", "std"})
    if known:
        return known | sizes
    try:
        image = ingest.decode(data)
    except UserError as error:
        raise UserError(f"{example.name} cannot be used: {error.message}.", error.remedy) from None
    mean, std = family.encode_images(pixels(image, size, flip=flip)[None])
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise UserError(
            f"The base model cannot encode {example.name}: its latents are not finite.", "Remove that picture."
        )
    return _keep(place, {"mean": mean[0].float().cpu(), "std": std[0].float().cpu()}) | sizes


def _sizes(example: Example, size: tuple[int, int]) -> Tensor:
    """[6]: original height and width, top and left of the crop in the resized picture, height and width."""
    (width, height), (left, top) = size, covering(example.width, example.height, size)[1]
    return torch.tensor([example.height, example.width, top, left, height, width], dtype=torch.float32)


def covering(width: int, height: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of a picture resized to cover `size`, and left and top of its middle part of that size."""
    scale = max(size[0] / width, size[1] / height)
    wide, high = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    return (wide, high), ((wide - size[0]) // 2, (high - size[1]) // 2)


def pixels(image: Image.Image, size: tuple[int, int], *, flip: bool) -> Tensor:
    """A picture resized to cover `size` (width, height), cropped in the middle, as [3, height, width] in -1..1."""
    width, height = size
    whole, (left, top) = covering(image.width, image.height, size)
    resized = image.resize(whole, Image.Resampling.LANCZOS, reducing_gap=3.0)
    array = np.array(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 127.5 - 1
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return tensor.flip(-1).contiguous() if flip else tensor.contiguous()


def _caption_conditioning(family: Family, caption: str, folder: Path, mark: str) -> Conditioning:
    place = _place(folder, hashlib.sha256(caption.encode()).hexdigest(), mark)
    known = _read(place, set())
    if known:
        return known
    with torch.no_grad():
        rows = family.encode_prompts([caption])
    return _keep(place, {key: row[0].float().cpu().contiguous() for key, row in rows.items()})


def _place(folder: Path, *parts: str) -> Path:
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return folder / dataset.CACHE / f"{key}.safetensors"


def _read(place: Path, keys: set[str]) -> dict[str, Tensor] | None:
    """A cached value; None if it is not there, damaged or of another form, so that it is made anew."""
    try:
        tensors = load(place.read_bytes())
    except (OSError, SafetensorError):
        return None
    return tensors if tensors and keys <= tensors.keys() and all(t.isfinite().all() for t in tensors.values()) else None


def _keep(place: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write a value to the cache if the folder allows it; a read-only data set trains all the same."""
    try:
        place.parent.mkdir(exist_ok=True)
        files.write(place, save(tensors))
    except OSError:
        pass
    return tensors
