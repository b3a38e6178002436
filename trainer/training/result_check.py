"""Check the result of a run: do its last previews show what the images show, in shape, not only in color?

Shape is where edges are, how strong they are, and which way they run: histograms of oriented gradients (Dalal & Triggs
2005), not normalized, so that a blur or a flat block counts as what it is. Only previews with the caption of an image
are compared; other prompts may well show something else.
"""

import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainer.config import TrainConfig, prompt_lines
from trainer.data import images
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from trainer.training import previews
from trainer.training.preparation import Materials

SIDE, CELL, DIRECTIONS = 128, 8, 8  # pixels of an image, pixels of a cell, directions of edges
FEWEST, MOST = 4, 64  # images to compare with
LEAST = 0.78  # of the likeness that the images have among themselves; benchmarks/defaults.md has the figures
NOT_SHOWN = _(
    "The last previews do not show the shapes that the images show. The base model may not be able to draw them: "
    "choose one that draws such images without an adapter. Or train for more steps, and say in the captions what each "
    "image shows."
)
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def report(run: Run, config: TrainConfig, materials: Materials, step: int) -> None:
    """Warn if the previews of a step do not show what the images of a run show."""
    lines = enumerate(map(prompt_lines.parse_prompt_line, config.preview.prompts))
    described = [number for number, line in lines if line.prompt in materials.captions and line.strength is None]
    pictures = [path for number in described if (path := previews.file_of(run, step, number)).is_file()]
    trained = list(dict.fromkeys(example.path for example in materials.examples))
    try:
        if pictures and len(trained) >= FEWEST and likeness(pictures, trained) < LEAST:
            run.warn(NOT_SHOWN)
    except (UserError, OSError):  # an image was removed meanwhile; the adapter is worth more than its check
        traceback.print_exc()


def likeness(pictures: Sequence[Path], examples: Sequence[Path]) -> float:
    """Return how much pictures are like the nearest examples in shape; 1 is as much as these among themselves."""
    # Of many examples, some that lie evenly among them stand for all.
    chosen = [examples[int(place)] for place in np.linspace(0, len(examples) - 1, min(MOST, len(examples)))]
    squares = [_square(path) for path in chosen]
    known = np.stack([_edges(square) for square in (*squares, *map(np.fliplr, squares))])
    among = _similarities(known[: len(chosen)], known)
    for number in range(len(chosen)):
        among[number, [number, number + len(chosen)]] = 0  # with itself
    own = _similarities(np.stack([_edges(_square(path)) for path in pictures]), known)
    usual = among.max(1).mean()
    if not usual:
        return 1.0  # images of a single color have no shapes
    return float(own.max(1).mean() / usual)


def _similarities(first: Array, second: Array) -> Array:
    """Return 2ab / (a² + b²) of each two rows: 1 if they are the same, and less where one of them is weaker."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)
    return np.asarray(2 * (first @ second.T) / np.maximum(squares, 1e-9))


def _square(path: Path) -> Array:
    """Return the brightness, 0 to 1, of the middle square of an image."""
    square = ImageOps.fit(images.decode(path.read_bytes()), (SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(square.convert("L"), dtype=np.float64) / 255


def _edges(square: Array) -> Array:
    """Return the strength of edges in each cell and direction, a little blurred."""
    down, right = np.gradient(square)
    strength, direction = np.hypot(down, right), np.arctan2(down, right) % np.pi / np.pi * DIRECTIONS
    layers = []
    for number in range(DIRECTIONS):
        apart = np.abs(direction - number)
        share = np.clip(1 - np.minimum(apart, DIRECTIONS - apart), 0, 1)  # between the two nearest directions
        cells = (strength * share).reshape(SIDE // CELL, CELL, SIDE // CELL, CELL).sum((1, 3))
        layers.append(_blurred(cells))
    return np.stack(layers).ravel()


def _blurred(cells: Array) -> Array:
    """Let each cell share with its neighbors, so that a shape may be a little aside."""
    padded = np.pad(cells, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16)
