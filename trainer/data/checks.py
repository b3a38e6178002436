"""Check a dataset: its files, its captions and, as far as statistics exist, its images.

Each kind of problem says what it does to the adapter and what to do about it; `repairs` does some of that itself.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from trainer.base_models import MICRO
from trainer.data import buckets, dataset, image_stats, reach, token_count
from trainer.data.dataset import Example
from trainer.data.image_stats import Measurement
from trainer.i18n import count, say

Action = Literal["", "remove", "rename", "tidy", "trigger", "backdrop"]
FEW, SHARED = 5, 3  # pictures; captions that are the same
SMALLEST = 64  # pixels
ENLARGED = 1.3  # times
CUT = 0.15  # share of a picture
BLURRED = 0.6
SEEN_THROUGH = 0.02  # share of a picture
BACKDROP = 0.6  # share of the pictures
NOUNS = frozenset({
    "person", "people", "human", "man", "men", "woman", "women", "girl", "girls", "boy", "boys", "child", "children",
    "kid", "baby", "lady", "guy", "male", "female", "character", "creature", "animal", "cat", "kitten", "dog", "puppy",
    "horse", "bird", "fox", "wolf", "bear", "rabbit", "dragon", "monster", "robot", "doll", "toy", "figure", "mascot",
    "elf", "fairy", "knight", "witch", "wizard", "car", "ship", "house", "building", "object", "1girl", "1boy",
})  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One thing that can be wrong: its words for the whole set, what it does to the result, and what to do.

    In `title`, {n} is a count, and [one|many] depends on it; `action` is what the program itself can do about it. The
    words are English here and are said in the person's language where they are shown.
    """

    title: str
    effect: str
    remedy: str
    action: Action = ""
    button: str = ""
    fatal: bool = False
    hint: bool = False  # good to know, and no mistake

    @property
    def titles(self) -> tuple[str, str]:
        """The title for one and for many."""
        one, many = (re.sub(r"\[(.*?)\|(.*?)\]", rf"\{number}", self.title) for number in (1, 2))
        return one, many


KINDS = {
    "empty": Kind(
        "There are no pictures in this data set.",
        "There is nothing to learn from.", "Add at least 5; 10 to 30 work best.", fatal=True,
    ),
    "few": Kind(
        "There are few pictures.",
        "The adapter learns these very pictures rather than what they have in common.",
        "It will train, but 10 to 30 pictures work best.",
    ),
    "unreadable": Kind(
        "{n} [file|files] cannot be read as a picture.",
        "Such a file is left out of the training.", "Export it again as PNG or JPEG.", "remove", "Remove",
    ),
    "shared caption": Kind(
        "{n} caption [file is|files are] shared by several pictures.",
        "These pictures are trained with the same words.",
        "Give the pictures different names.", "rename", "Give each its own",
    ),
    "lonely caption": Kind(
        "{n} caption [file has|files have] no picture.",
        "Nothing is done with such a file.", "Add the picture or remove the file.", "tidy", "Remove",
    ),
    "other caption": Kind(
        "{n} caption [file is|files are] of a kind that is not read.",
        "Captions are read from .txt files alone.", "Rename it to .txt if it is the caption you mean, or remove it.",
    ),
    "lonely mask": Kind(
        "{n} [mask has|masks have] no picture.",
        "Nothing is done with such a file.", "Add the picture or remove the file.", "tidy", "Remove",
    ),
    "mask": Kind(
        "{n} [picture has|pictures have] a mask.",
        "A mask is used only if Masks is on.", "Turn it on in step 2 under Advanced, Objective.", hint=True,
    ),
    "small": Kind(
        "{n} [picture is|pictures are] smaller than the size of training.",
        "Small pictures are enlarged, and the adapter learns to draw as softly.",
        "Use a larger version.", "remove", "Remove",
    ),
    "blank": Kind(
        "{n} [picture shows|pictures show] nothing but one colour.",
        "There is nothing to learn from it.", "Remove it.", "remove", "Remove",
    ),
    "blurred": Kind(
        "{n} [picture is|pictures are] blurred.",
        "The adapter learns the blur as part of what you teach.",
        "Look at them, and use sharper ones.", "remove", "Remove",
    ),
    "copy": Kind(
        "{n} [picture is|pictures are] nearly the same as another.",
        "What is seen more often is learned by heart: its pose, light and background come up unasked.",
        "Keep one of each.", "remove", "Keep the best of each",
    ),
    "cropped": Kind(
        "{n} [picture loses|pictures lose] much at the edges.",
        "Pictures are trained in a few shapes, and what lies beyond their edges is not seen.",
        "Crop them yourself, so that what matters is in the middle.",
    ),
    "transparent": Kind(
        "{n} [picture is|pictures are] see-through in parts.",
        "Plain white is put behind, and the adapter learns to draw on white.",
        "Choose Background: random in step 2 under Advanced, Pictures.",
    ),
    "backdrop": Kind(
        "Most pictures have the same background.",
        "It is learned together with what you teach, and comes up unasked.",
        "Add pictures with others, or name it in each caption, so that it can be told apart.",
        "backdrop", "Name it in the captions",
    ),
    "scenery": Kind(
        "Most pictures have the same background.",
        "It is learned together with what you teach, and comes up unasked.",
        "Add pictures with others, or describe it in each caption, so that it can be told apart.",
    ),
    "beyond micro": Kind(
        "Micro cannot draw pictures like these.",
        "Micro is for practice and knows drawn portraits only: the adapter becomes a vague likeness at best.",
        "Use a Stable Diffusion model: put its .safetensors file into the folder models, or give its path or its name "
        "on the hub, under Base model in step 2 (see Base models in the README).",
    ),
    "no caption": Kind(
        "{n} [picture has|pictures have] no caption.",
        "All that can be seen goes into the trigger word: clothes and background too.",
        "Write what can be seen and may change.",
    ),
    "odd letters": Kind(
        "{n} [caption has|captions have] letters that cannot be read.",
        "They are learned as they stand, and mean nothing.", "Type the caption anew, or save its file as UTF-8.",
    ),
    "same caption": Kind(
        "{n} pictures are described by the same words.",
        "The adapter cannot tell what differs between them.", "Write what is different in each.",
    ),
    "long caption": Kind(
        "{n} [caption is|captions are] too long.",
        "The rest is not read.", "Shorten it, or raise Caption length in step 2 under Advanced, Captions.",
    ),
    "no trigger": Kind(
        "{n} [caption lacks|captions lack] the trigger word.",
        "Nothing is lost: it is put in front for the training.",
        "Put it there yourself to see what is trained.", "trigger", "Put it in front", hint=True,
    ),
    "no class": Kind(
        "No caption says what your character is.",
        "The trigger word has to carry all of it; a word that the base knows gives it a start.",
        "Name its kind in each caption, such as woman, cat or robot.", hint=True,
    ),
    "turned": Kind(
        "{n} [picture is|pictures are] stored on the side.",
        "They are turned upright here, as viewers do; other trainers may not.", "There is nothing to do.", hint=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something in a data set that a person should know; `name` is the file, "" for the whole set."""

    kind: str
    name: str
    message: str

    @property
    def effect(self) -> str:
        """Return what the problem does to the adapter."""
        return say(KINDS[self.kind].effect)

    @property
    def remedy(self) -> str:
        """Return what to do about the problem."""
        return say(KINDS[self.kind].remedy)

    @property
    def fatal(self) -> bool:
        """Tell whether the problem prevents training."""
        return KINDS[self.kind].fatal

    @property
    def hint(self) -> bool:
        """Tell whether this is a remark rather than a mistake."""
        return KINDS[self.kind].hint

    @property
    def weight(self) -> int:
        """Return the severity, for sorting."""
        return 3 if self.fatal else 1 if self.hint else 2


def find(
    folder: Path, trigger: str = "", *, preset: str = "character", base: str = "", resolution: int = 0,
    measured: Mapping[str, Measurement] | None = None,
) -> list[Problem]:  # fmt: skip
    """List what to know before training, the most important first.

    Args:
        folder: the data set.
        trigger: the trigger word.
        preset: what is taught; a style needs no class.
        base: the base model, which reads only so much of a caption.
        resolution: of the training, in pixels; 0 = not known yet.
        measured: what is known of the pictures' looks; nothing is measured here.
    """
    paths = dataset.pictures(folder)
    examples = dataset.read(folder)
    there = {one.name for one in examples}
    numbers = {name: one for name, one in (measured or {}).items() if name in there}
    found = [
        *_files(paths, examples),
        *_caption_files(folder, paths),
        *_masks(folder, paths),
        *captions(examples, trigger, base),
    ]
    found += [*_sizes(examples, resolution), *_looks(examples, numbers)]
    if base == MICRO and reach.is_beyond(reach.known(folder)):
        found.append(Problem("beyond micro", "", say(KINDS["beyond micro"].title)))
    if preset == "character" and examples and any(one.caption for one in examples):
        words = {word for one in examples for word in re.findall(r"\w+", one.caption.lower())}
        found += [] if words & NOUNS else [Problem("no class", "", say(KINDS["no class"].title))]
    return sorted(found, key=lambda problem: -problem.weight)


def _files(paths: Sequence[Path], examples: Sequence[Example]) -> Iterator[Problem]:
    if not examples:
        yield Problem("empty", "", say(KINDS["empty"].title))
    elif len(examples) < FEW:
        yield Problem("few", "", count("There is only {n} picture.", "There are only {n} pictures.", len(examples)))
    readable = {one.name for one in examples}
    for path in paths:
        if path.name not in readable:
            yield Problem("unreadable", path.name, say("This file cannot be read as a picture."))


def _caption_files(folder: Path, paths: Sequence[Path]) -> Iterator[Problem]:
    stems = Counter(path.stem for path in paths)
    for stem, number in stems.items():
        if number > 1:
            told = say("{number} pictures share this caption file.", number=number)
            yield Problem("shared caption", f"{stem}.txt", told)
    for text in sorted(folder.glob("*.txt")):
        if text.stem not in stems:
            yield Problem("lonely caption", text.name, say("This caption has no picture."))
    for text in sorted(folder.glob("*.caption")):  # as some other trainers call them
        if text.stem in stems:
            yield Problem("other caption", text.name, say("This caption is not read."))


def _masks(folder: Path, paths: Sequence[Path]) -> Iterator[Problem]:
    stems = {path.stem for path in paths}
    for mask in dataset.masks(folder):
        if dataset.masked_stem(mask) not in stems:
            yield Problem("lonely mask", mask.name, say("This mask has no picture."))
    for path in paths:
        if dataset.mask_file(path).is_file():
            yield Problem("mask", path.name, say("Has a mask."))


def captions(examples: Sequence[Example], trigger: str, base: str) -> Iterator[Problem]:
    """Check the captions."""
    alike = Counter(dataset.without_trigger(one.caption, trigger).lower() for one in examples if one.caption)
    for one in examples:
        if not one.caption:
            yield Problem("no caption", one.name, say("No caption."))
            continue
        if dataset.LOST in one.caption:
            yield Problem("odd letters", one.name, say("The caption has letters that cannot be read."))
        if trigger and not dataset.contains_trigger(one.caption, trigger):
            yield Problem("no trigger", one.name, say("The caption lacks the trigger word {word!r}.", word=trigger))
        length, read = token_count.count(dataset.with_trigger(one.caption, trigger), base), token_count.limit(base)
        if length > read:
            told = say("{length} tokens; only {read} are read.", length=length, read=read)
            yield Problem("long caption", one.name, told)
        same = alike[dataset.without_trigger(one.caption, trigger).lower()]
        if same >= SHARED:
            yield Problem("same caption", one.name, say("The same caption as {number} others.", number=same - 1))


def _sizes(examples: Sequence[Example], resolution: int) -> Iterator[Problem]:
    for one, (enlarged, cut) in zip(examples, crops(examples, resolution), strict=True):
        size = {"width": one.width, "height": one.height}
        if min(one.width, one.height) < SMALLEST:
            yield Problem("small", one.name, say("Only {width} x {height} pixels.", **size))
        elif enlarged > ENLARGED:
            told = say("{width} x {height} pixels, enlarged {times:.1f} times.", times=enlarged, **size)
            yield Problem("small", one.name, told)
        share = 1 - (1 - cut[0]) * (1 - cut[1])
        if share > CUT:
            yield Problem("cropped", one.name, say("{share:.0%} is cut off.", share=share))
        if dataset.is_turned(one.path):
            yield Problem("turned", one.name, say("Stored on its side."))


def crops(examples: Sequence[Example], resolution: int) -> list[tuple[float, tuple[float, float]]]:
    """For each picture: how many times it is enlarged, and which share of its width and height is cut off."""
    if not resolution:
        return [(1.0, (0.0, 0.0))] * len(examples)
    return list(_crops(tuple((one.width, one.height) for one in examples), resolution))


@lru_cache(maxsize=8)
def _crops(sizes: tuple[tuple[int, int], ...], resolution: int) -> tuple[tuple[float, tuple[float, float]], ...]:
    found = []
    for (width, height), (wide, high) in zip(sizes, buckets.buckets(sizes, resolution), strict=True):
        scale = max(wide / width, high / height)
        found.append((scale, (max(0.0, 1 - wide / scale / width), max(0.0, 1 - high / scale / height))))
    return tuple(found)


def _looks(examples: Sequence[Example], measured: Mapping[str, Measurement]) -> Iterator[Problem]:
    for name, one in measured.items():
        if image_stats.is_blank(one):
            yield Problem("blank", name, say("One colour, nothing else."))
        elif one.blur > BLURRED:
            yield Problem("blurred", name, say("Blurred."))
        if one.opaque < 1 - SEEN_THROUGH:
            yield Problem("transparent", name, say("{share:.0%} is see-through.", share=1 - one.opaque))
    for kept, others in copies(examples, measured).items():
        yield from (Problem("copy", name, say("Nearly the same as {name}.", name=kept)) for name in others)
    names, colour = backdrop(examples, measured)
    numbers = {"number": len(names), "all": len(measured)}
    if colour:
        told = say("{number} of {all} pictures have the same {colour} background.", colour=say(colour), **numbers)
        yield Problem("backdrop", "", told)
    elif names:
        yield Problem("scenery", "", say("{number} of {all} pictures have the same background.", **numbers))


def copies(examples: Sequence[Example], measured: Mapping[str, Measurement]) -> dict[str, list[str]]:
    """Pictures that look nearly the same: the others of each group by its best: captioned, sharp, large."""
    sharp = {name for name, one in measured.items() if one.blur <= BLURRED}
    worth = {one.name: (bool(one.caption), one.name in sharp, one.width * one.height) for one in examples}
    found = {}
    for group in image_stats.near_copies(tuple(sorted(measured.items()))):
        best = max(group, key=lambda name: worth[name])
        found[best] = [name for name in group if name != best]
    return found


def backdrop(examples: Sequence[Example], measured: Mapping[str, Measurement]) -> tuple[tuple[str, ...], str]:
    """The pictures that share a background which their captions do not name, and its colour; none if they are few."""
    solid = tuple((name, one) for name, one in sorted(measured.items()) if one.opaque >= 1 - SEEN_THROUGH)
    names, colour = image_stats.shared_backdrop(solid)
    named = {one.name for one in examples if "background" in one.caption.lower()}
    silent = [name for name in names if name not in named]
    if len(names) < max(SHARED, BACKDROP * len(measured)) or len(silent) < 0.5 * len(names):
        return (), ""
    return names, colour


# Words ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """All problems of a kind in one row: in a sentence, with the files it is about."""

    kind: str
    title: str
    names: tuple[str, ...]


def gathered(problems: Sequence[Problem]) -> list[Finding]:
    """The problems by kind, in the order in which they come."""
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.kind, []).append(problem)
    return [_finding(kind, members) for kind, members in found.items()]


def _finding(kind: str, members: Sequence[Problem]) -> Finding:
    names = tuple(one.name for one in members if one.name)
    if not names:
        return Finding(kind, members[0].message, ())
    return Finding(kind, count(*KINDS[kind].titles, len(names)), names)


def rank(problems: Sequence[Problem]) -> dict[str, int]:
    """Score each file for sorting: the more is wrong with it and the more it matters, the higher."""
    weights: dict[str, int] = {}
    for problem in problems:
        weights[problem.name] = weights.get(problem.name, 0) + 10 ** (problem.weight - 1)
    return weights
