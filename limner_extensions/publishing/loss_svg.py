"""The loss curve of a run as an SVG image: raw values faint, their moving average bold. Needs no script."""

import math
from collections.abc import Sequence
from html import escape

from trainer.runs import events

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 28
Point = tuple[float, float]


def draw(state: events.State) -> str:
    """Draw the loss of all steps; "" if there are fewer than two."""
    points = [(step, loss) for step, loss in events.loss_curve(state) if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    averages = events.smooth([loss for _step, loss in points])
    first, last = points[0][0], points[-1][0]
    losses = [loss for _step, loss in points]
    margin = (max(losses) - min(losses)) * 0.06 or 0.01
    low, high = max(0.0, min(losses) - margin), max(losses) + margin

    def place(step: float, loss: float) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    raw = [place(step, loss) for step, loss in points]
    smooth = [place(step, average) for (step, _loss), average in zip(points, averages, strict=True)]
    label = events.describe_loss(points, state.steps)
    marks = [_level(value, place(first, value)[1]) for value in ticks(low, high)]
    marks += [_step(value, place(value, low)[0]) for value in ticks(first, last) if value == int(value)]
    end_x, end_y = smooth[-1]
    return (
        f"<div class='wide' tabindex='0'><svg class='loss' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{escape(label)}'>{''.join(marks)}{_line('raw', raw)}{_line('smooth', smooth)}"
        f"<circle cx='{end_x:.1f}' cy='{end_y:.1f}' r='4'/></svg></div>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    begin = math.ceil(low / distance - 1e-9)
    return [number * distance for number in range(begin, math.floor(high / distance + 1e-9) + 1)]


def _level(value: float, y: float) -> str:
    return (
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{value:.3g}</text>"
    )


def _step(value: float, x: float) -> str:
    return f"<text x='{x:.1f}' y='{HEIGHT - 8}' text-anchor='middle'>{value:.0f}</text>"


def _line(kind: str, points: Sequence[Point]) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline class='{kind}' points='{text}'/>"
