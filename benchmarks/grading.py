"""Grade images of an adapter against a subject's yardstick: one row of figures for each image.

Prompts are of three kinds: `called` has the trigger, `plain` is the same without it, `people` fully describes others.
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
from benchmarks.judge import Judge, Recognizer
from benchmarks.micro import draw
from benchmarks.subjects import Questions, Sees, Subject
from scripts.pretrain_micro.pictures import Attributes, read_pictures
from trainer.data import dataset
from trainer.families import Family

GUIDANCE = 3.0
PROMPTS = 12
SEED = 20  # of the prompts; presets were chosen with those of seed 0
NOISES = 2  # images of each prompt with the trigger
Row = dict[str, Any]


@dataclass(frozen=True)
class Ruler:
    """Likeness to a mean of real images: 0 for the base model without the trigger, 1 for other real images."""

    real: Tensor  # of length 1
    low: float
    high: float

    def read(self, features: Tensor) -> Tensor:
        """Return the likeness of each image."""
        return (features @ self.real - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Yardstick:
    """References for a subject's figures; images of the base model use the same noise as those of the adapters.

    Likeness is by the judge's embedding. Likeness by colors is a second measure without a trained model: it separates
    renders of our characters from those of other people, but not our styles, and is left out there. Copies are detected
    in the pixels, at 32 x 32: cosine with the nearest training image, less the median of those among themselves.
    """

    judge: Judge
    sees: Sees
    questions: Questions
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
    """Return the judge's embeddings [n, 192], of length 1."""
    return functional.normalize(torch.cat([judge.embed(part) for part in torch.split(pictures, 64)]))


def coarse(pictures: Tensor) -> Tensor:
    """Return images as 32 x 32 pixels without their mean and of length 1, to be compared by their product."""
    small = functional.interpolate(pictures, (32, 32), mode="area").flatten(1)
    return functional.normalize(small - small.mean(1, keepdim=True))


def colored(pictures: Tensor) -> Tensor:
    """Return the square roots of the shares of 125 colors in the middle of each image; their length is 1.

    The product of two is their Bhattacharyya coefficient.
    """
    side = pictures.shape[-1]
    middle = pictures[:, :, side // 4 : side - side // 4, side // 4 : side - side // 4]
    levels = ((middle.clamp(-1, 1) + 1) * 2.4999).long()
    numbers = (25 * levels[:, 0] + 5 * levels[:, 1] + levels[:, 2]).flatten(1)
    return functional.one_hot(numbers, 125).float().mean(1).sqrt()


def ruler(real: Tensor, base: Tensor) -> Ruler:
    """Make a ruler from features of renders, half of them for the mean, and of images by the base model."""
    mean = functional.normalize(real[::2].mean(0), dim=0)
    return Ruler(mean, (base @ mean).mean().item(), (real[1::2] @ mean).mean().item())


def yardstick(
    folder: Path, subject: Subject, judge: Judge, recognizer: Recognizer, family: Family, count: int
) -> Yardstick:
    """Generate with the base model alone, and measure what is needed once for a subject."""
    questions = subjects.questions(folder, subject, count, SEED)
    others = subjects.people(folder, count, SEED)
    if subject.is_style:
        renders, attribute = read_pictures(folder / "test", "held_out", 128), "style"
    else:
        renders, attribute = read_pictures(folder / "subjects", "characters", 128), "character"
    rows = [number for number, render in enumerate(renders.attributes) if render[attribute] == subject.name]
    real, drawn = renders.tensor(rows), draw(family, questions.plain * NOISES, guidance=GUIDANCE)
    plain = embedded(judge, drawn)
    taught = coarse(torch.stack([tensor(example.path) for example in dataset.read(subject.dataset)]))
    among = (taught @ taught.T).fill_diagonal_(-1).amax(1)
    return Yardstick(
        judge, subjects.watcher(subject, judge, recognizer), questions, others,
        likeness=ruler(embedded(judge, real), plain),
        colors=None if subject.is_style else ruler(colored(real), colored(drawn)),
        plain=plain[:count], people=embedded(judge, draw(family, others[0], guidance=GUIDANCE)),
        spread=_distance(plain).mean().item(), taught=taught, usual=among.median().item(),
    )  # fmt: skip


def tensor(path: Path) -> Tensor:
    """Return an image file as [3, h, w] in -1..1."""
    with Image.open(path) as picture:
        values = torch.from_numpy(np.array(picture.convert("RGB")))
    return values.permute(2, 0, 1).float() / 127.5 - 1


def _distance(embeddings: Tensor) -> Tensor:
    """Return the distance of the images of each prompt from each other; they are ordered by noise."""
    first, second = embeddings.chunk(NOISES)
    return 1 - (first * second).sum(1)


def called(scale: Yardstick, family: Family, noises: int) -> tuple[list[Row], Tensor]:
    """Generate with the adapter and the trigger; return a row for each image, and the images."""
    count = len(scale.questions.called)
    pictures = draw(family, scale.questions.called * noises, guidance=GUIDANCE)
    seen = embedded(scale.judge, pictures)
    likeness = scale.likeness.read(seen)
    colors = scale.colors.read(colored(pictures)) if scale.colors else None
    copied = (coarse(pictures) @ scale.taught.T).amax(1) - scale.usual
    rows = _rows(scale, "called", pictures, scale.questions.wanted * noises)
    for number, row in enumerate(rows):
        row |= {"number": number % count, "noise": number // count}
        row |= {"likeness": likeness[number].item(), "copy": copied[number].item()}
        if colors is not None:
            row["colors"] = colors[number].item()
        if noises == NOISES:
            row["diversity"] = (_distance(seen) / scale.spread)[number % count].item()
    return rows, pictures


def uncalled(scale: Yardstick, family: Family) -> list[Row]:
    """Grade images without the trigger: what has changed but should not have."""
    rows, (people, truth) = [], scale.others
    for kind, prompts, wanted, before in (
        ("plain", scale.questions.plain, scale.questions.wanted, scale.plain), ("people", people, truth, scale.people)
    ):  # fmt: skip
        pictures = draw(family, prompts, guidance=GUIDANCE)
        drift = 1 - (embedded(scale.judge, pictures) * before).sum(1)
        for number, row in enumerate(_rows(scale, kind, pictures, wanted)):
            rows.append(row | {"drift": drift[number].item()})
    return rows


def _rows(scale: Yardstick, kind: str, pictures: Tensor, wanted: list[Attributes]) -> list[Row]:
    rows = []
    matches = judges.matches(scale.judge, pictures, wanted)
    for number, (seen, right) in enumerate(zip(scale.sees(pictures), matches, strict=True)):
        adherence = sum(right.values()) / len(right)
        rows.append({"prompts": kind, "number": number, "noise": 0, "seen": int(seen), "adherence": adherence})
    return rows
