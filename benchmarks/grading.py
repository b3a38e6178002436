"""Grades pictures of an adapter against a subject's yardstick: one row of figures for each picture.

Prompts are of three kinds: `called` has the trigger, `plain` is the same without it, `people` is somebody else in full.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks import judge as judges
from benchmarks import subjects
from benchmarks.judge import Judge, Recogniser
from benchmarks.micro import draw
from benchmarks.subjects import Questions, Sees, Subject
from scripts.pretrain_micro.pictures import Attributes, read_pictures
from trainer.data import dataset
from trainer.families import Family

GUIDANCE = 3.0
PROMPTS = 12
SEED = 20  # of the prompts; presets were chosen with those of seed 0
NOISES = 2  # pictures of each prompt with the trigger
Row = dict[str, Any]


@dataclass(frozen=True)
class Ruler:
    """Likeness to a mean of real pictures: 0 is what the base draws without the trigger, 1 other real pictures."""

    real: Tensor  # of length 1
    low: float
    high: float

    def read(self, features: Tensor) -> Tensor:
        """Likeness of each picture."""
        return (features @ self.real - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Yardstick:
    """What a subject's figures are measured against; pictures of the base are from the same noise as the adapters'.

    Likeness is by the judge's embedding. By colors it is a second opinion that has learned nothing: it tells renders of
    our characters from other people's, but not our styles, and is left out there. A copy is looked for in the pixels,
    at 32 x 32: cosine with the nearest training picture, less the median of what those have among themselves.
    """

    judge: Judge
    sees: Sees
    asked: Questions
    others: tuple[list[str], list[Attributes]]
    likeness: Ruler
    colors: Ruler | None
    plain: Tensor  # [n, 192], of the base
    people: Tensor
    spread: float
    taught: Tensor  # training pictures in few pixels
    usual: float


@torch.no_grad()
def embedded(judge: Judge, pictures: Tensor) -> Tensor:
    """The judge's embeddings [n, 192], of length 1."""
    return functional.normalize(torch.cat([judge.embed(part) for part in torch.split(pictures, 64)]))


def coarse(pictures: Tensor) -> Tensor:
    """Pictures as few numbers, without their mean and of length 1, to be compared by their product."""
    small = functional.interpolate(pictures, (32, 32), mode="area").flatten(1)
    return functional.normalize(small - small.mean(1, keepdim=True))


def colored(pictures: Tensor) -> Tensor:
    """How much of each of 125 colors is in the middle of each picture, as its root and so of length 1.

    The product of two is their Bhattacharyya coefficient.
    """
    side = pictures.shape[-1]
    middle = pictures[:, :, side // 4 : side - side // 4, side // 4 : side - side // 4]
    levels = ((middle.clamp(-1, 1) + 1) * 2.4999).long()
    numbers = (25 * levels[:, 0] + 5 * levels[:, 1] + levels[:, 2]).flatten(1)
    return functional.one_hot(numbers, 125).float().mean(1).sqrt()


def ruler(real: Tensor, base: Tensor) -> Ruler:
    """A ruler from features of renders, half of them for the mean, and of pictures by the base."""
    mean = functional.normalize(real[::2].mean(0), dim=0)
    return Ruler(mean, (base @ mean).mean().item(), (real[1::2] @ mean).mean().item())


def yardstick(
    folder: Path, subject: Subject, judge: Judge, recogniser: Recogniser, family: Family, count: int
) -> Yardstick:
    """Draw with the base alone, and measure what is needed once for a subject."""
    asked = subjects.questions(folder, subject, count, SEED)
    others = subjects.people(folder, count, SEED)
    where = ("test", "held_out", "style") if subject.is_style else ("subjects", "characters", "character")
    renders = read_pictures(folder / where[0], where[1], 128)
    rows = [number for number, one in enumerate(renders.attributes) if one[where[2]] == subject.name]
    real, drawn = renders.tensor(rows), draw(family, asked.plain * NOISES, guidance=GUIDANCE)
    plain = embedded(judge, drawn)
    shown = [_tensor(one.path) for one in dataset.read(subject.dataset)]
    taught = coarse(torch.stack(shown))
    among = (taught @ taught.T).fill_diagonal_(-1).amax(1)
    return Yardstick(
        judge, subjects.watcher(subject, judge, recogniser), asked, others,
        likeness=ruler(embedded(judge, real), plain),
        colors=None if subject.is_style else ruler(colored(real), colored(drawn)),
        plain=plain[:count], people=embedded(judge, draw(family, others[0], guidance=GUIDANCE)),
        spread=_distance(plain).mean().item(), taught=taught, usual=among.median().item(),
    )  # fmt: skip


def _tensor(path: Path) -> Tensor:
    with Image.open(path) as picture:
        values = torch.from_numpy(np.array(picture.convert("RGB")))
    return values.permute(2, 0, 1).float() / 127.5 - 1


def _distance(embeddings: Tensor) -> Tensor:
    """How far the pictures of a prompt are from each other, for each prompt; they come noise by noise."""
    first, second = embeddings.chunk(NOISES)
    return 1 - (first * second).sum(1)


def called(scale: Yardstick, family: Family, noises: int) -> tuple[list[Row], Tensor]:
    """A row for each picture that the family draws with its adapter and the trigger, and the pictures."""
    count = len(scale.asked.called)
    pictures = draw(family, scale.asked.called * noises, guidance=GUIDANCE)
    seen = embedded(scale.judge, pictures)
    likeness = scale.likeness.read(seen)
    colors = scale.colors.read(colored(pictures)) if scale.colors else None
    copied = (coarse(pictures) @ scale.taught.T).amax(1) - scale.usual
    rows = _rows(scale, "called", pictures, scale.asked.wanted * noises)
    for number, row in enumerate(rows):
        place = {"number": number % count, "noise": number // count}
        row |= {**place, "likeness": likeness[number].item(), "copy": copied[number].item()}
        if colors is not None:
            row["colors"] = colors[number].item()
        if noises == NOISES:
            row["diversity"] = (_distance(seen) / scale.spread)[number % count].item()
    return rows, pictures


def uncalled(scale: Yardstick, family: Family) -> list[Row]:
    """The same without the trigger: what has changed that should not."""
    rows, (people, truth) = [], scale.others
    for kind, prompts, wanted, before in (
        ("plain", scale.asked.plain, scale.asked.wanted, scale.plain), ("people", people, truth, scale.people)
    ):  # fmt: skip
        pictures = draw(family, prompts, guidance=GUIDANCE)
        drift = 1 - (embedded(scale.judge, pictures) * before).sum(1)
        found = _rows(scale, kind, pictures, wanted)
        rows += [one | {"drift": drift[number].item()} for number, one in enumerate(found)]
    return rows


def _rows(scale: Yardstick, kind: str, pictures: Tensor, wanted: list[Attributes]) -> list[Row]:
    right = judges.matches(scale.judge, pictures, wanted)
    return [
        {"prompts": kind, "number": number, "noise": 0, "seen": int(seen), "adherence": sum(one.values()) / len(one)}
        for number, (seen, one) in enumerate(zip(scale.sees(pictures), right, strict=True))
    ]
