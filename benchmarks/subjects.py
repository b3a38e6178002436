"""Subjects of the benchmarks: characters and styles that micro has never seen, prompts for each, and recognition."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks import judge as judges
from benchmarks.judge import Judge, Recognizer
from scripts.pretrain_micro.captions import HAIR_PHRASES, caption
from scripts.pretrain_micro.pictures import Attributes, read_pictures

STYLES = {"pixelArt": "pxlo style", "bigSmile": "bgsm style", "dylan": "dyln style"}
CHARACTERS = ("miraxo", "dovrek", "tuvani", "skelno", "karune", "velmor")
MEASURED = ("zephro", "odelyn", "quilla")  # that only benchmarks.checkpoints teaches

Sees = Callable[[Tensor], list[bool]]


@dataclass(frozen=True)
class Subject:
    """A character or a style: its trigger, and the dataset that shows it."""

    name: str
    trigger: str
    preset: str
    dataset: Path

    @property
    def is_style(self) -> bool:
        """True if it is a way of drawing rather than a character."""
        return self.preset == "style"


@dataclass(frozen=True)
class Questions:
    """Prompts with the trigger, the same without it, and the attributes that the images should have."""

    called: list[str]
    plain: list[str]
    wanted: list[Attributes]


class Talkative(random.Random):
    """Makes `caption` mention every attribute, the style last; words and order still vary."""

    def random(self) -> float:
        """Return a number below every chance of being mentioned, above that of the style coming first."""
        return 0.3


def find(folder: Path, name: str) -> Subject:
    """Return the subject of this name, drawn in FOLDER/subjects."""
    preset = "style" if name in STYLES else "character"
    return Subject(name, STYLES.get(name, name), preset, folder / "subjects" / name)


def people(folder: Path, count: int, seed: int) -> tuple[list[str], list[Attributes]]:
    """Return prompts that fully describe people that no model has seen, and their attributes."""
    sample = random.Random(seed).sample(read_pictures(folder / "test", "world", 128).attributes, count)
    return [caption(person, Talkative(f"{seed}:{number}")) for number, person in enumerate(sample)], sample


def questions(folder: Path, subject: Subject, count: int, seed: int) -> Questions:
    """Return the prompts for a subject; none is the caption of an image that it is taught with."""
    if subject.is_style:
        plain, wanted = _anyone(count, seed)
        return Questions([f"{subject.trigger}, {prompt}" for prompt in plain], plain, wanted)
    scenes = [
        {"background": person["background"], "shirt": person["shirt"] or "red"}
        for person in people(folder, count, seed)[1]
    ]
    phrases = [f"{scene['shirt']} shirt, {scene['background']} background" for scene in scenes]
    called, plain = ([f"{who}, {phrase}" for phrase in phrases] for who in (subject.trigger, "a person"))
    return Questions(called, plain, scenes)


def _anyone(count: int, seed: int) -> tuple[list[str], list[Attributes]]:
    """Return prompts without a style for people that every style can draw, and the attributes to grade."""
    rng = random.Random(seed)
    persons = [
        {
            "hair": rng.choice(("short", "long", "curly", "spiky", "bob", "bun")),
            "skin": rng.choice(("pale", "tan", "brown", "dark")),
            "expression": rng.choice(("smiling", "sad")),
            **{name: rng.choice(judges.HEADS[name]) for name in ("hairColor", "background")},
        }
        for _ in range(count)
    ]
    phrases = [HAIR_PHRASES[person["hair"]][0].format(person["hairColor"]) for person in persons]
    prompts = [
        f"a person with {phrase}, {person['skin']} skin, {person['expression']}, {person['background']} background"
        for phrase, person in zip(phrases, persons, strict=True)
    ]
    return prompts, [{name: person[name] for name in ("hairColor", "skin", "background")} for person in persons]


def watcher(subject: Subject, judge: Judge, recognizer: Recognizer) -> Sees:
    """Return a function that tells for each image whether it shows the subject."""

    def sees(pictures: Tensor) -> list[bool]:
        if subject.is_style:
            return [attributes["style"] == subject.name for attributes in judge.name(pictures)]
        return [name == subject.name for name in recognizer.name(pictures)]

    return sees
