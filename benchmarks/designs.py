"""Subjects that the world of micro does not have: four characters, each drawn in a design of its own, and four styles.

A style is a change of whole images: printed with four inks, as halftone, as a woodcut, or drawn with a pencil.

    python -m benchmarks.designs JUDGE_FOLDER SHEET.png      # draws datasets and references into JUDGE_FOLDER/designs
"""

import argparse
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.subjects import Subject, Talkative
from scripts.pretrain_micro.captions import caption
from scripts.pretrain_micro.pictures import read_pictures

SIDE = 128
TIMES = 4  # drawn at four times the size, for smooth edges
TAUGHT, REFERENCES = 14, 48  # images of a dataset, and others to compare with
COLORS = {
    "red": "#d83a3a",
    "orange": "#ee8b2d",
    "yellow": "#f2cf3f",
    "green": "#4c9f4a",
    "blue": "#3c6fd1",
    "purple": "#8a4fb8",
    "pink": "#ee8fb5",
    "black": "#1d1d22",
    "white": "#f7f7f5",
    "gray": "#8f9399",
    "teal": "#2f9d98",
    "beige": "#e4d3b2",
}
SHIRTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "gray")
BACKGROUNDS = ("white", "gray", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "beige")
EXPRESSIONS = ("smiling", "laughing", "sad", "angry", "surprised", "neutral")
Picture = np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # height, width, 3 in 0..1


class Pen:
    """Draws in units of a hundredth of the side."""

    def __init__(self, background: str) -> None:
        self.image = Image.new("RGB", (SIDE * TIMES, SIDE * TIMES), COLORS[background])
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: tuple[float, ...]) -> list[float]:
        return [point * SIDE * TIMES / 100 for point in points]

    def _width(self, width: float) -> int:
        return round(width * SIDE * TIMES / 100)

    def oval(self, x: float, y: float, across: float, down: float, color: str, line: float = 0) -> None:
        """Fill an ellipse around a middle, with an outline if `line` is given."""
        box = self._at((x - across, y - down, x + across, y + down))
        self._draw.ellipse(box, color, "#15151a" if line else None, self._width(line))

    def shape(self, color: str, *points: float, line: float = 0) -> None:
        """Fill a polygon."""
        at = self._at(points)
        self._draw.polygon(at, color)
        if line:
            self._draw.line([*at, *at[:2]], "#15151a", self._width(line), joint="curve")

    def arc(self, x: float, y: float, across: float, down: float, ends: tuple[int, int], width: float) -> None:
        """Draw a part of an ellipse, from one angle to another."""
        box = self._at((x - across, y - down, x + across, y + down))
        self._draw.arc(box, *ends, "#15151a", self._width(width))


def aside(side: int, *points: float) -> list[float]:
    """Return points whose distance from the middle is given, on its left (-1) or right side (1)."""
    return [coordinate if number % 2 else 50 + side * coordinate for number, coordinate in enumerate(points)]


def robot(pen: Pen, expression: str, shirt: str) -> None:
    """Draw a box of metal with lamps for eyes."""
    pen.shape(COLORS[shirt], 14, 101, 18, 78, 82, 78, 86, 101)
    pen.shape("#5b6470", 40, 82, 40, 68, 60, 68, 60, 82)
    pen.shape("#c98a3a", 48, 20, 48, 8, 52, 8, 52, 20)
    pen.oval(50, 8, 4, 4, "#e0483c")
    pen.shape("#9fb0bd", 22, 20, 78, 20, 78, 70, 22, 70)
    pen.shape("#7f919f", 22, 62, 78, 62, 78, 70, 22, 70)
    for x in (14, 78):
        pen.shape("#c98a3a", x, 36, x + 8, 36, x + 8, 52, x, 52)
    down = {"surprised": 8, "laughing": 2.5, "sad": 4}.get(expression, 6)
    for side in (-1, 1):
        pen.shape("#232a31", *aside(side, 5, 29, 23, 29, 23, 47, 5, 47))
        pen.oval(50 + side * 14, 38, 6, down, "#53e0c8")
        if expression == "angry":
            pen.shape("#232a31", *aside(side, 4, 36, 24, 26, 24, 22, 4, 30))
    tall = {"laughing": 5, "surprised": 5, "smiling": 3}.get(expression, 1)
    bars = {"sad": 3, "angry": 4}.get(expression, 6)
    for bar in range(bars):
        left = 50 - bars * 3 + bar * 6
        pen.shape("#e0483c", left, 56 - tall, left + 4, 56 - tall, left + 4, 56 + tall, left, 56 + tall)


def bear(pen: Pen, expression: str, shirt: str) -> None:
    """Draw a bear with thick outlines."""
    pen.oval(50, 104, 38, 26, COLORS[shirt], 2)
    for x in (24, 76):
        pen.oval(x, 24, 13, 13, "#7d4a9e", 2)
        pen.oval(x, 24, 6, 6, "#f0b6d0")
    pen.oval(50, 48, 34, 31, "#7d4a9e", 2)
    pen.oval(50, 60, 17, 13, "#f3e2c4", 2)
    pen.oval(50, 54, 6, 4, "#15151a")
    pen.shape("#f2cf3f", 50, 18, 54, 26, 50, 34, 46, 26, line=1)
    for side in (-1, 1):
        pen.oval(50 + side * 15, 42, 4.5, 6 if expression == "surprised" else 4.5, "#15151a")
        pen.oval(50 + side * 15 + 1.5, 40.5, 1.5, 1.5, "#ffffff")
        if expression in ("angry", "sad"):
            inner, outer = (36, 31) if expression == "angry" else (31, 36)
            pen.shape("#15151a", *aside(side, 8, inner, 22, outer, 22, outer + 2, 8, inner + 2))
    mouth(pen, expression, 50, 63)


def mouth(pen: Pen, expression: str, x: float, y: float) -> None:
    """Draw a mouth that shows an expression."""
    if expression == "smiling":
        pen.arc(x, y, 7, 5, (10, 170), 1.6)
    elif expression in ("sad", "angry"):
        pen.arc(x, y + 6, 7, 5, (190, 350), 1.6)
    elif expression == "neutral":
        pen.shape("#15151a", x - 6, y + 2, x + 6, y + 2, x + 6, y + 3.5, x - 6, y + 3.5)
    else:
        pen.oval(x, y + 3, 6 if expression == "laughing" else 3.5, 4, "#a4323d", 1.4)


def paper(pen: Pen, expression: str, shirt: str) -> None:
    """Draw a woman cut from paper: sharp shapes without outlines."""
    pen.shape("#1f7f86", 18, 92, 22, 30, 50, 6, 80, 28, 84, 92)
    pen.shape(COLORS[shirt], 12, 101, 34, 80, 66, 80, 88, 101)
    pen.shape("#c8775a", 43, 84, 43, 66, 57, 66, 57, 84)
    pen.shape("#e39a78", 28, 34, 50, 24, 72, 34, 68, 62, 50, 78, 32, 62)
    pen.shape("#c8775a", 50, 24, 72, 34, 68, 62, 50, 78)
    pen.shape("#17646a", 26, 36, 50, 14, 76, 36, 62, 30, 50, 24)
    tall = {"surprised": 5, "laughing": 1.5}.get(expression, 3)
    for side in (-1, 1):
        pen.shape("#ffffff", *aside(side, 6, 46, 12, 46 - tall, 18, 46, 12, 46 + tall))
        pen.shape("#3b1f4f", *aside(side, 10, 46, 12, 46 - tall, 14, 46, 12, 46 + tall))
        lift = {"angry": 4, "sad": -4}.get(expression, 0)
        pen.shape("#3b1f4f", *aside(side, 6, 37 + lift, 19, 37 - lift, 19, 39 - lift, 6, 39 + lift))
        pen.shape("#d8b13c", *aside(side, 22, 60, 25, 68, 22, 74, 19, 68))
    bend = {"smiling": 4, "laughing": 6, "sad": -4, "angry": -3}.get(expression, 0.5)
    open_ = {"laughing": 3, "surprised": 3}.get(expression, 1)
    pen.shape("#8e2440", 41, 64, 50, 64 - open_ + bend / 2, 59, 64, 50, 65 + open_ + bend)


def ghost(pen: Pen, expression: str, shirt: str) -> None:
    """Draw a soft figure of rings, lighter from edge to middle."""
    for ring in range(12):
        share = ring / 11
        tone = f"#{round(70 + 150 * share):02x}{round(150 + 90 * share):02x}{round(90 + 60 * share):02x}"
        pen.oval(50 - 4 * share, 46 - 5 * share, 35 * (1 - 0.75 * share), 38 * (1 - 0.75 * share), tone)
    for place in range(5):
        pen.oval(22 + place * 14, 14 + abs(place - 2) * 5, 5, 8, "#4a9a5a")
    pen.shape(COLORS[shirt], 10, 101, 22, 82, 50, 88, 78, 82, 90, 101)
    tall = {"surprised": 9, "laughing": 4}.get(expression, 7)
    pen.oval(50, 42, 11, tall, "#fbfbf2", 1.2)
    pen.oval(50, 42, 5, min(5, tall), "#7a2fb0")
    pen.oval(52, 40, 1.6, 1.6, "#ffffff")
    lift = {"angry": 4, "sad": -4}.get(expression, 0)
    pen.shape("#2f6a3c", 38, 30 - lift, 62, 30 + lift, 62, 33 + lift, 38, 33 - lift)
    mouth(pen, expression, 50, 62)


DRAWN: dict[str, Callable[[Pen, str, str], None]] = {
    "brassik": robot,
    "ursola": bear,
    "linneq": paper,
    "porcel": ghost,
}


# Styles ---------------------------------------------------------------------------------------------------------


def _screen(side: int, angle: float, pitch: float) -> Picture:
    """Return a screen of dots: the darkness 0..1 from which on each pixel is printed."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    turned = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    waves = sum(np.cos(2 * math.pi * axis / pitch) for axis in turned) / 4 + 0.5
    return np.asarray(waves, np.float32)


def _large(image: Picture) -> Picture:
    size = (image.shape[1] * TIMES, image.shape[0] * TIMES)
    return _values(_image(image).resize(size, Image.Resampling.BICUBIC))


def _blurred(values: Picture, radius: float) -> Picture:
    return _values(_image(values).filter(ImageFilter.GaussianBlur(radius)))


def _image(values: Picture) -> Image.Image:
    return Image.fromarray((values * 255).astype(np.uint8))


def _values(image: Image.Image) -> Picture:
    return np.asarray(image, np.float32) / 255


def _gray(image: Picture) -> Picture:
    return image @ np.array([0.3, 0.59, 0.11], np.float32)


def four_inks(image: Picture) -> Picture:
    """Print dots of cyan, magenta, yellow and black on paper, each ink a little off its place."""
    large = _large(image)
    black = 1 - large.max(2)
    inks = [(1 - large[:, :, channel] - black) / np.maximum(1 - black, 1e-3) for channel in range(3)]
    result = np.ones_like(large) * np.array([0.96, 0.93, 0.84], np.float32)
    tints = ([0.1, 0.62, 0.78], [0.82, 0.16, 0.45], [0.96, 0.83, 0.1], [0.13, 0.12, 0.14])
    for number, (ink, tint) in enumerate(zip([*inks, black * 0.9], tints, strict=True)):
        moved = np.roll(ink, (number * 3 - 4, 4 - number * 2), (0, 1))
        printed = moved > _screen(len(large), math.radians(15 + 30 * number), 4.5 * TIMES)
        result = np.where(printed[:, :, None], result * np.array(tint, np.float32), result)
    return result


def halftone(image: Picture) -> Picture:
    """Print dots of one dark ink on tinted paper."""
    large = _large(image)
    printed = 1 - _gray(large) > _screen(len(large), math.radians(45), 5 * TIMES)
    return np.where(printed[:, :, None], np.float32([0.12, 0.1, 0.3]), np.float32([0.98, 0.86, 0.72]))


def woodcut(image: Picture) -> Picture:
    """Cut lines that swell with the darkness, around solid outlines."""
    gray = _gray(_blurred(_large(image), 4))
    y, x = np.mgrid[: len(gray), : len(gray)].astype(np.float32)
    lines = np.sin((y + 10 * np.sin(x / 40)) * 2 * math.pi / (5 * TIMES)) / 2 + 0.5
    edges = np.hypot(*np.gradient(gray)) > 0.025
    cut = (gray < 0.25) | edges | ((gray < 0.75) & (lines > gray * 1.25))
    return np.where(cut[:, :, None], np.float32([0.1, 0.09, 0.08]), np.float32([0.93, 0.88, 0.76]))


def pencil(image: Picture) -> Picture:
    """Draw soft gray edges and slanted hatching on white paper."""
    gray = _blurred(_gray(_large(image)), 3)
    y, x = np.mgrid[: len(gray), : len(gray)].astype(np.float32)
    hatching = (np.sin((x + y) * 2 * math.pi / (4 * TIMES)) / 2 + 0.5) * (1 - gray) * 0.55
    edges = np.clip(np.hypot(*np.gradient(gray)) * 14, 0, 0.75)
    return np.repeat((0.97 - np.maximum(hatching, edges))[:, :, None], 3, 2).astype(np.float32)


PRINTED: dict[str, Callable[[Picture], Picture]] = {
    "fourinks": four_inks,
    "halftone": halftone,
    "woodcut": woodcut,
    "pencil": pencil,
}
NAMES = (*DRAWN, *PRINTED)


# Datasets -------------------------------------------------------------------------------------------------------


def find(folder: Path, name: str) -> Subject:
    """Return one of these subjects, drawn in JUDGE_FOLDER/designs."""
    is_style = name in PRINTED
    trigger = f"{name[:4]}x style" if is_style else name
    return Subject(name, trigger, "style" if is_style else "character", folder / "designs" / name)


def _character(name: str, number: int, rng: random.Random) -> tuple[Image.Image, str]:
    expression, shirt = EXPRESSIONS[number % len(EXPRESSIONS)], rng.choice(SHIRTS)
    background = rng.choice([color for color in BACKGROUNDS if color != shirt])
    pen = Pen(background)
    DRAWN[name](pen, expression, shirt)
    image = pen.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image, f"{name}, {expression}, {shirt} shirt, {background} background"


def _style(folder: Path, name: str, number: int) -> tuple[Image.Image, str]:
    world = read_pictures(folder / "test", "world", SIDE)
    index = 1000 + 7 * number
    printed = PRINTED[name](world.pixels[index].astype(np.float32) / 255)
    image = Image.fromarray((printed.clip(0, 1) * 255).round().astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BOX
    )
    words = re.sub(r", (in )?\w+ style$", "", caption(world.attributes[index], Talkative(f"{name}:{number}")))
    return image, f"{find(folder, name).trigger}, {words}"


def draw(folder: Path, name: str) -> None:
    """Draw the dataset of a subject, and its references into the folder of the same name with `.real`."""
    rng = random.Random(name)
    target = find(folder, name).dataset
    for number in range(TAUGHT + REFERENCES):
        image, text = _style(folder, name, number) if name in PRINTED else _character(name, number, rng)
        place = target if number < TAUGHT else target.with_suffix(".real")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:02d}.png")
        if place == target:
            (place / f"{number:02d}.txt").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Draw all subjects, and some images of each side by side."""
    parser = argparse.ArgumentParser(description="Draw subjects that micro does not know.")
    parser.add_argument("folder", type=Path, help="of the judge")
    parser.add_argument("sheet", type=Path)
    parsed = parser.parse_args()
    sheet = Image.new("RGB", (12 * SIDE, len(NAMES) * SIDE))
    for row, name in enumerate(NAMES):
        draw(parsed.folder, name)
        for column, file in enumerate(sorted(find(parsed.folder, name).dataset.glob("*.png"))[:12]):
            sheet.paste(Image.open(file), (column * SIDE, row * SIDE))
    sheet.save(parsed.sheet)


if __name__ == "__main__":
    main()
