"""Check a dataset: its files, its captions and, as far as statistics exist, its images."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer.data import buckets, captions, dataset, image_stats, images, token_count
from trainer.data.dataset import Example
from trainer.data.image_stats import ImageStats
from trainer.data.problems import KINDS, Problem
from trainer.i18n import _, ngettext

FEW, SHARED = 5, 3  # images; images with the same caption
SMALLEST = 64  # pixels
ENLARGED = 1.3  # times
CUT = 0.15  # share of an image
BLURRED = 0.6
TRANSPARENT = 0.02  # share of an image
BACKGROUND = 0.6  # share of the images
NOT_READ = (*images.CONVERTED, *images.UNSUPPORTED)  # extensions of images that only an upload may take in
_NOUNS = """
    person people human man men woman women girl girls boy boys child children kid baby lady guy male female
    character creature animal cat kitten dog puppy horse bird fox wolf bear rabbit dragon monster robot doll toy
    figure mascot elf fairy knight witch wizard car ship house building object 1girl 1boy
"""
NOUNS = frozenset(_NOUNS.split())


@dataclass(frozen=True)
class Examination:
    """The examples of a dataset, and what to know about them before training, the most important first.

    `unmeasured` is the number of images whose pixels were not looked at yet.
    """

    examples: tuple[Example, ...]
    problems: list[Problem]
    unmeasured: int


def examine(
    folder: Path,
    trigger: str = "",
    *,
    preset: str = "character",
    base: str = "",
    resolution: int = 0,
    examples: tuple[Example, ...] | None = None,
) -> Examination:
    """Read a dataset and check it, with the statistics that are known: nothing is measured here.

    Args:
        folder: the dataset.
        trigger: the trigger word.
        preset: what is taught; a style needs no class, and plain LoRA may teach one.
        base: the base model, which limits the length of captions.
        resolution: of the training, in pixels; 0 = not known yet.
        examples: as they were just read, if they were.
    """
    files, everything = dataset.image_files(folder), examples
    if everything is None:
        everything = dataset.read(folder)
    known = image_stats.look(folder)
    whole = [example for example in everything if example.name not in known.damaged]
    sound = {example.name for example in whole}
    stats = {name: image for name, image in known.stats.items() if name in sound}
    names = sorted(os.listdir(folder))
    problems = [
        *_check_images(files, whole, known.damaged),
        *_check_folders(folder),
        *_check_left_out(folder, names, files),
        *_check_caption_files(names, files),
        *_check_masks(folder, files),
        *_check_captions(whole, trigger, base),
        *_check_sizes(whole, resolution),
        *_check_stats(whole, stats),
    ]
    if preset == "character" and _lacks_class(whole):
        problems.append(Problem("no class", "", _(KINDS["no class"].title)))
    problems.sort(key=lambda problem: -problem.severity)
    return Examination(everything, problems, len(known.missing))


def _check_images(files: Sequence[Path], examples: Sequence[Example], damaged: Collection[str]) -> Iterator[Problem]:
    if not examples:
        yield Problem("empty", "", _(KINDS["empty"].title))
    elif len(examples) < FEW:
        yield Problem("few", "", ngettext("There is only {n} image.", "There are only {n} images.", len(examples)))
    readable = {example.name for example in examples}
    for file in files:
        if file.name in damaged or (file.name not in readable and images.display_size(file) is None):
            yield Problem("unreadable", file.name, _("This file cannot be read as an image."))


def _check_folders(folder: Path) -> Iterator[Problem]:
    for subfolder in dataset.subfolders(folder):
        is_own = subfolder.name.startswith(".") or subfolder.name.lower() in dataset.MASK_FOLDERS
        if not is_own and (number := len(dataset.image_files(subfolder))):
            message = ngettext("{n} image in it is not read.", "{n} images in it are not read.", number)
            yield Problem("folder", subfolder.name, message)


def _check_left_out(folder: Path, names: Sequence[str], files: Sequence[Path]) -> Iterator[Problem]:
    read = {file.name for file in files}
    for name in names:
        if name in read or name.startswith("."):
            continue
        stem, extension = os.path.splitext(name)
        lower = extension.lower()
        if lower in images.SUFFIXES and (folder / name).is_symlink():
            yield Problem("left out", name, _("It is a link to an image."))
        elif lower in NOT_READ:
            yield Problem("left out", name, _("{form} is not read here.", form=lower[1:].upper()))
        elif lower in captions.FORMS and extension != lower and not (folder / (stem + lower)).exists():
            yield Problem("left out", name, _("Its ending has capital letters."))


def _check_caption_files(names: Sequence[str], files: Sequence[Path]) -> Iterator[Problem]:
    stems = Counter(file.stem for file in files)
    for stem, number in stems.items():
        if number > 1:
            message = _("{number} images share this caption file.", number=number)
            yield Problem("shared caption", f"{stem}.txt", message)
    texts = {stem for stem, extension in map(os.path.splitext, names) if extension == ".txt"}
    left_out = {stem for stem, extension in map(os.path.splitext, names) if extension.lower() in NOT_READ}
    for stem, extension in map(os.path.splitext, names):
        if extension in captions.FORMS and stem not in stems and stem not in left_out:
            yield Problem("lonely caption", stem + extension, _("This caption has no image."))
    for stem, extension in map(os.path.splitext, names):
        if extension == ".caption" and stem in texts and stem in stems:
            yield Problem("other caption", stem + extension, _("This caption is not read."))


def _check_masks(folder: Path, files: Sequence[Path]) -> Iterator[Problem]:
    stems = {file.stem for file in files}
    for mask in dataset.mask_files(folder):
        if dataset.masked_stem(mask) not in stems:
            yield Problem("lonely mask", mask.name, _("This mask has no image."))
    for file in dataset.masked(folder, files):
        yield Problem("mask", file.name, _("Has a mask."))


def _check_captions(examples: Sequence[Example], trigger: str, base: str) -> Iterator[Problem]:
    def distinctive(caption: str) -> str:
        return captions.without_trigger(caption, trigger).lower()

    limit = token_count.limit(base)
    bare = [distinctive(example.caption) for example in examples]
    alike = Counter(text for text, example in zip(bare, examples, strict=True) if example.caption)
    for text, example in zip(bare, examples, strict=True):
        name, caption = example.name, example.caption
        if not caption:
            yield Problem("no caption", name, _("No caption."))
            continue
        if captions.REPLACEMENT in caption:
            yield Problem("odd letters", name, _("The caption has unreadable characters."))
        if trigger and not captions.contains_trigger(caption, trigger):
            yield Problem("no trigger", name, _("The caption lacks the trigger word {word!r}.", word=trigger))
        length = token_count.count(captions.with_trigger(caption, trigger), base)
        if length > limit:
            message = _("{length} tokens; only {read} are read.", length=length, read=limit)
            yield Problem("long caption", name, message)
        same = alike[text]
        if same >= SHARED:
            yield Problem("same caption", name, _("The same caption as {number} others.", number=same - 1))


def _lacks_class(examples: Sequence[Example]) -> bool:
    """Return True if there are captions but none names a class such as `woman` or `robot`."""
    words: set[str] = set()
    for example in examples:
        words.update(re.findall(r"\w+", example.caption.lower()))
    return any(example.caption for example in examples) and not words & NOUNS


def _check_sizes(examples: Sequence[Example], resolution: int) -> Iterator[Problem]:
    for example, (enlarged, cut) in zip(examples, crop_losses(examples, resolution), strict=True):
        size = {"width": example.width, "height": example.height}
        if min(example.width, example.height) < SMALLEST:
            yield Problem("small", example.name, _("Only {width} x {height} pixels.", **size))
        elif enlarged > ENLARGED:
            message = _("{width} x {height} pixels, enlarged {times:.1f} times.", times=enlarged, **size)
            yield Problem("small", example.name, message)
        share = 1 - (1 - cut[0]) * (1 - cut[1])
        if share > CUT:
            yield Problem("cropped", example.name, _("{share:.0%} is cut off.", share=share))
        if images.is_rotated(example.path):
            yield Problem("turned", example.name, _("Stored on its side."))


def crop_losses(examples: Sequence[Example], resolution: int) -> list[tuple[float, tuple[float, float]]]:
    """Return for each image by what factor it is enlarged, and the shares of its width and height that are cut off."""
    if not resolution:
        return [(1.0, (0.0, 0.0))] * len(examples)
    return list(_crop_losses(tuple((example.width, example.height) for example in examples), resolution))


def assigned_buckets(examples: Sequence[Example], resolution: int) -> list[buckets.Size]:
    """Return the bucket of each image; their own sizes if the resolution is 0, that is not known yet."""
    sizes = tuple((example.width, example.height) for example in examples)
    return list(_buckets(sizes, resolution) if resolution else sizes)


@lru_cache(maxsize=8)
def _buckets(sizes: tuple[buckets.Size, ...], resolution: int) -> tuple[buckets.Size, ...]:
    return tuple(buckets.buckets(sizes, resolution))


@lru_cache(maxsize=8)
def _crop_losses(sizes: tuple[buckets.Size, ...], resolution: int) -> tuple[tuple[float, tuple[float, float]], ...]:
    losses = []
    for (width, height), (wide, high) in zip(sizes, _buckets(sizes, resolution), strict=True):
        scale = max(wide / width, high / height)
        losses.append((scale, (max(0.0, 1 - wide / scale / width), max(0.0, 1 - high / scale / height))))
    return tuple(losses)


def _check_stats(examples: Sequence[Example], stats: Mapping[str, ImageStats]) -> Iterator[Problem]:
    for name, image in stats.items():
        if image.is_blank:
            yield Problem("blank", name, _("A single color."))
        elif image.blur > BLURRED:
            yield Problem("blurred", name, _("Blurred."))
        if image.opaque < 1 - TRANSPARENT:
            yield Problem("transparent", name, _("{share:.0%} is transparent.", share=1 - image.opaque))
    for best, others in _near_duplicates(examples, stats).items():
        for name in others:
            yield Problem("copy", name, _("Nearly the same as {name}.", name=best), best)
    names, color = shared_background(examples, stats)
    numbers = {"number": len(names), "all": len(stats)}
    if color:
        message = _("{number} of {all} images have the same {color} background.", color=_(color), **numbers)
        yield Problem("backdrop", "", message)
    elif names:
        yield Problem("scenery", "", _("{number} of {all} images have the same background.", **numbers))


def _near_duplicates(examples: Sequence[Example], stats: Mapping[str, ImageStats]) -> dict[str, list[str]]:
    """Group images that look nearly the same: the others by the best, which is captioned, sharp and large."""

    def worth(example: Example) -> tuple[bool, bool, int]:
        is_sharp = example.name in stats and stats[example.name].blur <= BLURRED
        return bool(example.caption), is_sharp, example.width * example.height

    worths = {example.name: worth(example) for example in examples}
    duplicates = {}
    for names in image_stats.near_duplicates(tuple(sorted(stats.items()))):
        best = max(names, key=lambda name: worths[name])
        duplicates[best] = [name for name in names if name != best]
    return duplicates


def shared_background(examples: Sequence[Example], stats: Mapping[str, ImageStats]) -> tuple[tuple[str, ...], str]:
    """Return the images that share a background and its color; none if they are few or their captions name it."""
    opaque = tuple((name, image) for name, image in sorted(stats.items()) if image.opaque >= 1 - TRANSPARENT)
    names, color = image_stats.shared_background(opaque)
    named = {example.name for example in examples if "background" in example.caption.lower()}
    unnamed = [name for name in names if name not in named]
    if len(names) < max(SHARED, BACKGROUND * len(stats)) or len(unnamed) < 0.5 * len(names):
        return (), ""
    return names, color
