"""Draws pictures from outside of micro's world: drawings, and scenes that look photographed.

Each is 256 pixels wide and high and follows from its kind and number, so that tests and docs can name it.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256
Field = np.ndarray[Any, np.dtype[np.float64]]


def cat(number: int) -> Image.Image:
    """Draw a striped cat that sits somewhere, with thin lines for fur and whiskers."""
    rng = random.Random(f"cat {number}")
    image, draw = _canvas(_color(rng, 120, 250))
    fur, dark = (225, 150, 70), (150, 85, 30)
    x, y = rng.randint(-40, 40), rng.randint(-10, 20)
    draw.polygon([(0, 190), (SIDE, 170 + rng.randint(0, 40)), (SIDE, SIDE), (0, SIDE)], fill=_color(rng, 40, 200))
    draw.arc([150 + x, 120 + y, 230 + x, 230 + y], -150, 90, fill=fur, width=14)
    draw.ellipse([80 + x, 110 + y, 180 + x, 236 + y], fill=fur, outline=dark, width=3)
    for stripe in range(5):
        draw.arc([84 + x, 120 + 20 * stripe + y, 176 + x, 150 + 20 * stripe + y], 200, 260, fill=dark, width=5)
    for left in (82, 142):
        draw.polygon([(left + x, 70 + y), (left + 18 + x, 24 + y), (left + 36 + x, 66 + y)], fill=fur, outline=dark)
    draw.ellipse([78 + x, 50 + y, 182 + x, 134 + y], fill=fur, outline=dark, width=3)
    for left in (100, 142):
        draw.ellipse([left + x, 76 + y, left + 20 + x, 98 + y], fill=(150, 220, 90), outline="black", width=2)
        draw.ellipse([left + 8 + x, 78 + y, left + 12 + x, 96 + y], fill="black")
    draw.polygon([(122 + x, 104 + y), (138 + x, 104 + y), (130 + x, 112 + y)], fill=(220, 110, 120))
    for side in (-1, 1):
        for whisker in range(3):
            end = (130 + side * 78 + x, 100 + 12 * whisker + y)
            draw.line([130 + side * 20 + x, 110 + 3 * whisker + y, *end], fill="black", width=1)
        draw.ellipse([118 + side * 24 + x, 216 + y, 146 + side * 24 + x, 240 + y], fill=fur, outline=dark, width=2)
    return image


def landscape(number: int) -> Image.Image:
    """Show mountains at dusk over water: clouds, haze, ripples and the grain of a sensor."""
    rng = np.random.default_rng([1, number])
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    sky = np.stack([0.75 - 0.4 * (1 - row), 0.6 - 0.2 * (1 - row), 0.55 + 0.2 * (1 - row)], axis=-1)
    clouds = np.clip(_cloud(rng, 1.7) * 0.35, 0, 1)[..., None]
    scene = sky * (1 - clouds) + np.array([0.95, 0.85, 0.8]) * clouds
    for depth in range(4):
        ridge = 0.32 + 0.1 * depth + 0.06 * _cloud(rng, 2.2)[SIDE // 2]
        texture = 0.5 + 0.16 * _cloud(rng, 1.1)
        shade = np.array([0.28, 0.3, 0.34]) * (1.5 - 0.3 * depth) + rng.uniform(-0.05, 0.05, 3)
        scene = np.where((row > ridge)[..., None], texture[..., None] * shade * 2, scene)
    water = row > 0.74
    ripple = 0.06 * np.sin(90 * row**2 + 3 * _cloud(rng, 1.6)) + 0.03 * _cloud(rng, 0.8)
    scene = np.where(water[..., None], 0.75 * scene[::-1] + ripple[..., None], scene)
    return _developed(scene + 0 * column[..., None], rng)


DRAWINGS: dict[str, Callable[[int], Image.Image]] = {"cat": cat}
PHOTOGRAPHS: dict[str, Callable[[int], Image.Image]] = {"landscape": landscape}


def save(folder: Path, kind: str, count: int) -> Path:
    """Write so many pictures of a kind into a folder, without captions; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (DRAWINGS | PHOTOGRAPHS)[kind](number).save(folder / f"{number + 1:02}.png")
    return folder


def _canvas(color: tuple[int, ...]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), color)
    return image, ImageDraw.Draw(image)


def _color(rng: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.randint(low, high) for _ in range(3))


def _cloud(rng: np.random.Generator, slope: float) -> Field:
    """Noise [h, w] of mean 0 and deviation 1 whose amplitudes fall with a power of the frequency, as in nature."""
    down, across = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    strength = np.maximum(np.hypot(down, across), 1 / SIDE) ** -slope
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) * strength, s=(SIDE, SIDE))
    return np.asarray((field - field.mean()) / field.std())


def _developed(scene: Field, rng: np.random.Generator) -> Image.Image:
    """Light as a camera keeps it: soft by a lens, grainy, brightest and darkest cut off."""
    image = Image.fromarray(np.uint8(255 * np.clip(scene, 0, 1) ** 0.8)).filter(ImageFilter.GaussianBlur(0.6))
    return Image.fromarray(np.uint8(np.clip(np.asarray(image) + rng.normal(0, 3, (SIDE, SIDE, 1)), 0, 255)))
