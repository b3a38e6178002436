"""What the benches teach micro: characters and styles it has never seen, what is asked of each, and who sees them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks import judge as judges
from benchmarks.judge import Judge, Recogniser
from scripts.pretrain_micro.captions import HAIR_PHRASES, caption
from scripts.pretrain_micro.pictures import Attributes, read_pictures

STYLES = {"pixelArt": "pxlo style", "bigSmile": "bgsm style", "dylan": "dyln style"}
CHARACTERS = ("miraxo", "dovrek", "tuvani", "skelno", "karune", "velmor")

Sees = Callable[[Tensor], list[bool]]


@dataclass(frozen=True)
class Subject:
    """A character or a style: what calls it, and the data set that shows it."""

    name: str
    trigger: str
    preset: str
    dataset: Path

    @property
    def is_style(self) -> bool:
        """Whether it is a way of drawing, not a person."""
        return self.preset == "style"


@dataclass(frozen=True)
class Questions:
    """Prompts with the trigger, the same without it, and the attributes that a picture has to have then."""

    called: list[str]
    plain: list[str]
    wanted: list[Attributes]


class Talkative(random.Random):
    """Says every attribute, the style last; words and order still vary."""

    def random(self) -> float:
        """Below every chance of being said, above that of the style coming first."""
        return 0.3


def find(folder: Path, name: str) -> Subject:
    """The subject of this name, drawn in FOLDER/subjects."""
    preset = "style" if name in STYLES else "character"
    return Subject(name, STYLES.get(name, name), preset, folder / "subjects" / name)


def people(folder: Path, count: int, seed: int) -> tuple[list[str], list[Attributes]]:
    """Prompts that say all of a person that no model has seen, and that person."""
    chosen = random.Random(seed).sample(read_pictures(folder / "test", "world", 128).attributes, count)
    return [caption(person, Talkative(f"{seed}:{number}")) for number, person in enumerate(chosen)], chosen


def questions(folder: Path, subject: Subject, count: int, seed: int) -> Questions:
    """What is asked of a subject; no prompt is the caption of a picture that it is taught with."""
    if subject.is_style:
        plain, wanted = _anyone(count, seed)
        return Questions([f"{subject.trigger}, {prompt}" for prompt in plain], plain, wanted)
    scenes = [
        {"background": one["background"], "shirt": one["shirt"] or "red"} for one in people(folder, count, seed)[1]
    ]
    phrases = [f"{one['shirt']} shirt, {one['background']} background" for one in scenes]
    called, plain = ([f"{who}, {phrase}" for phrase in phrases] for who in (subject.trigger, "a person"))
    return Questions(called, plain, scenes)


def _anyone(count: int, seed: int) -> tuple[list[str], list[Attributes]]:
    """Prompts without a style for people that every style can draw, and what of them is graded."""
    rng = random.Random(seed)
    drawn = [
        {
            "hair": rng.choice(("short", "long", "curly", "spiky", "bob", "bun")),
            "skin": rng.choice(("pale", "tan", "brown", "dark")),
            "expression": rng.choice(("smiling", "sad")),
            **{name: rng.choice(judges.HEADS[name]) for name in ("hairColor", "background")},
        }
        for _ in range(count)
    ]
    phrases = [HAIR_PHRASES[one["hair"]][0].format(one["hairColor"]) for one in drawn]
    prompts = [
        f"a person with {phrase}, {one['skin']} skin, {one['expression']}, {one['background']} background"
        for phrase, one in zip(phrases, drawn, strict=True)
    ]
    return prompts, [{name: one[name] for name in ("hairColor", "skin", "background")} for one in drawn]


def watcher(subject: Subject, judge: Judge, recogniser: Recogniser) -> Sees:
    """What tells for each picture whether it shows the subject."""

    def sees(pictures: Tensor) -> list[bool]:
        if subject.is_style:
            return [one["style"] == subject.name for one in judge.name(pictures)]
        return [name == subject.name for name in recogniser.name(pictures)]

    return sees
