"""Report of the quality benchmark: its CSV, means with bootstrap intervals, curves, time to equal quality, sheets.

Intervals come from resampling subjects, the training seeds of each, and the prompts of each run (Efron 1979).
Differences are taken between runs of the same subject and seed before resampling.
"""

import argparse
import csv
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.recipes import ABLATIONS, GUARDED, OURS, PEERS, TUNED, WIDTH
from benchmarks.subjects import STYLES

KEY = ("subject", "recipe", "rate", "seed")
COLUMNS = (
    *KEY, "step", "exposures", "seconds", "prompts", "number", "noise", "seen", "adherence", "likeness", "colors",
    "copy", "diversity", "drift",
)  # fmt: skip
KINDS = {"Characters": False, "Styles": True}  # whether the subjects are styles
WITHOUT_TRIGGER = ("plain", "people")
# Name in the table: kinds of prompts, column of the CSV.
FIGURES: dict[str, tuple[tuple[str, ...], str]] = {
    "seen": (("called",), "seen"),
    "likeness": (("called",), "likeness"),
    "by colors": (("called",), "colors"),
    "adherence": (("called",), "adherence"),
    "leak, plain": (("plain",), "seen"),
    "leak, people": (("people",), "seen"),
    "drift": (WITHOUT_TRIGGER, "drift"),
    "copy": (("called",), "copy"),
    "diversity": (("called",), "diversity"),
}
DRAWS = 2000
NEAR = 0.01  # smaller differences in likeness do not count
PER_ROW = 12  # images per row of a sheet

Array = np.ndarray[Any, np.dtype[np.float64]]
Key = tuple[str, ...]
Rows = list[dict[str, str]]
Label = tuple[str, str]  # recipe and rate


def append(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Append the rows of a run, all at once, with fractions of four digits."""
    append_as_they_are(path, ({name: _short(value) for name, value in row.items()} for row in rows), columns)


def append_as_they_are(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Append rows to a CSV, which begins with its columns; what a row lacks is left empty."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _short(value: Any) -> Any:  # noqa: ANN401 - a cell
    return f"{value:.4f}" if isinstance(value, float) else value


def read(path: Path, key: Sequence[str] = KEY) -> dict[Key, Rows]:
    """Read the rows by run, which the columns of the key tell apart."""
    runs: dict[Key, Rows] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                runs.setdefault(tuple(row[name] for name in key), []).append(row)
    return runs


def actions(doc: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of `run JUDGE_FOLDER FIGURES.csv` and `table FIGURES.csv`, and that of `run`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="action", required=True)
    running, printing = parts.add_parser("run"), parts.add_parser("table")
    running.add_argument("folder", type=Path, help="of the judge")
    for action in (running, printing):
        action.add_argument("csv", type=Path)
    running.add_argument("--seeds", type=int, default=2)
    return parser, running


def strip(path: Path, key: Key) -> Path:
    """Return the path of the last images of a run, side by side."""
    return path.with_suffix("") / f"{' '.join(key)}.png"


def by_step(rows: Rows) -> dict[int, Rows]:
    """Group the rows of a run by the step of the graded adapter, in order."""
    steps: dict[int, Rows] = {}
    for row in rows:
        steps.setdefault(int(row["step"]), []).append(row)
    return dict(sorted(steps.items()))


def last(rows: Rows) -> Rows:
    """Return the rows of the finished adapter."""
    return list(by_step(rows).values())[-1]


def values(rows: Rows, kinds: Sequence[str], column: str) -> Array:
    """Return a figure for each prompt, averaged over its images."""
    prompts: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["prompts"] in kinds:
            prompts.setdefault((row["prompts"], row["number"]), []).append(float(row[column]))
    return np.array([np.mean(figures) for figures in prompts.values()])


def score(rows: Rows) -> Array:
    """Return likeness times adherence of each prompt, for ranking: Peng et al. 2024, arXiv 2406.16855."""
    return values(rows, *FIGURES["likeness"]) * values(rows, *FIGURES["adherence"])


def bootstrap(runs: dict[str, list[Array]]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval; `runs` has the values by prompt of each run of each subject."""
    rng = np.random.default_rng(0)
    means = []
    for subject_runs in runs.values():
        table = np.stack(subject_runs)  # seeds, prompts
        chosen = rng.integers(len(table), size=(DRAWS, len(table), 1))
        prompts = rng.integers(table.shape[1], size=(DRAWS, *table.shape))
        means.append(table[chosen, prompts].mean((1, 2)))
    per_subject = np.stack(means)
    subjects = rng.integers(len(means), size=(len(means), DRAWS))
    drawn = np.take_along_axis(per_subject, subjects, 0).mean(0)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(np.mean([np.mean(subject_runs) for subject_runs in runs.values()])), float(low), float(high)


def table_lines(runs: dict[Key, Rows]) -> dict[str, Label]:
    """Return the lines of the table: as documented, scaled to micro's width, at the best rate, and ablations."""
    lines: dict[str, Label] = {OURS: (OURS, "1")}
    for name in PEERS:
        lines[f"{name}, as documented"] = (name, "1")
        lines[f"{name}, rate x {WIDTH:g}"] = (name, f"{WIDTH:.4g}")
        rates = [f"{rate:.4g}" for rate in TUNED if any(key[1:3] == (name, f"{rate:.4g}") for key in runs)]
        if len(rates) == len(TUNED):
            best = max(rates, key=lambda rate: np.mean([score(last(rows)).mean() for rows in _of(runs, (name, rate))]))
            lines[f"{name}, tuned: x {best}"] = (name, best)
    lines |= {name: (name, f"{WIDTH:.4g}") for name in GUARDED} | {name: (name, "1") for name in ABLATIONS}
    return {line: label for line, label in lines.items() if any(key[1:3] == label for key in runs)}


def _of(runs: dict[Key, Rows], label: Label) -> list[Rows]:
    return [rows for key, rows in runs.items() if key[1:3] == label]


def table(path: Path) -> str:
    """Format all figures as Markdown, characters and styles separately."""
    every, parts = read(path), []
    for title, styles in KINDS.items():
        if runs := _of_kind(every, styles=styles):
            lines = table_lines(runs)
            parts += [f"### {title}\n", *_final(runs, lines), "", *_curves(runs, lines), "", *_times(runs, lines), ""]
    return "\n".join(parts)


def _final(runs: dict[Key, Rows], lines: dict[str, Label]) -> list[str]:
    known = {name for rows in runs.values() for row in rows for name, value in row.items() if value}
    figures = [name for name, figure in FIGURES.items() if figure[1] in known]
    names = ["recipe", "subjects x seeds", "exposures", "CPU s", *figures, "likeness x adherence less ours"]
    out = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for line, label in lines.items():
        of = _finished(runs, label)
        spent = [f"{np.mean([float(rows[0][name]) for rows in of.values()]):.0f}" for name in ("exposures", "seconds")]
        cells = [_interval(of, partial(_figure, name)) for name in figures]
        base = {key: _ours(runs, key) for key in of}
        paired = {key: rows for key, rows in of.items() if base[key]}
        less = ""
        if label[0] != OURS and paired:
            above = sum(score(rows).mean() > score(base[key]).mean() for key, rows in paired.items())
            less = f"{_interval(paired, score, base)}, {above} of {len(paired)} above"
        out.append(f"| {' | '.join([line, _counted(of), *spent, *cells, less])} |")
    return out


def summary(path: Path, names: Sequence[str]) -> str:
    """Format what each recipe of a CSV did as Markdown."""
    runs = read(path)
    columns = ["recipe", "subjects x seeds", *names]
    out = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for title, styles in KINDS.items():
        if own := _of_kind(runs, styles=styles):
            out.append(f"| **{title.lower()}**{' |' * len(columns)}")
            for line, label in table_lines(own).items():
                finished = _finished(own, label)
                cells = [_interval(finished, partial(_figure, name)) for name in names]
                out.append(f"| {' | '.join([line, _counted(finished), *cells])} |")
    return "\n".join(out)


def _of_kind(runs: dict[Key, Rows], *, styles: bool) -> dict[Key, Rows]:
    return {key: rows for key, rows in runs.items() if (key[0] in STYLES) == styles}


def _finished(runs: dict[Key, Rows], label: Label) -> dict[Key, Rows]:
    return {key: last(rows) for key, rows in runs.items() if key[1:3] == label}


def _figure(name: str, rows: Rows) -> Array:
    return values(rows, *FIGURES[name])


def _counted(runs: Iterable[Key]) -> str:
    keys = list(runs)
    return f"{len({key[0] for key in keys})} x {len({key[3] for key in keys})}"


def _ours(runs: dict[Key, Rows], key: Key) -> Rows:
    rows = runs.get((key[0], OURS, "1", key[3]))
    return last(rows) if rows else []


def _interval(of: dict[Key, Rows], figure: Callable[[Rows], Array], less: dict[Key, Rows] | None = None) -> str:
    by_subject: dict[str, list[Array]] = {}
    for key, rows in of.items():
        by_subject.setdefault(key[0], []).append(figure(rows) - (figure(less[key]) if less else 0))
    mean, low, high = bootstrap(by_subject)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


Curve = list[tuple[float, float]]


def curve(rows: Rows, along: str) -> Curve:
    """Return likeness by exposures or seconds, from the noises that all adapters of a run are graded with."""
    parts = by_step([row for row in rows if row["noise"] == "0"]).values()
    return [(float(part[0][along]), float(values(part, *FIGURES["likeness"]).mean())) for part in parts]


def _curves(runs: dict[Key, Rows], lines: dict[str, Label]) -> list[str]:
    out = ["| recipe | likeness after exposures |", "|---|---|"]
    for line, label in lines.items():
        curves = [curve(rows, "exposures") for rows in _of(runs, label)]
        shared = min(map(len, curves))
        if shared > 1:
            means = np.mean([points[-shared:] for points in curves], axis=0)
            out.append(f"| {line} | {', '.join(f'{at:.0f}: {level:.2f}' for at, level in means)} |")
    return out


def reached(points: Curve, target: float) -> float | None:
    """Return where a curve rises to a target and stays above it, interpolated from (0, 0); None if it does not."""
    before = (0.0, 0.0)
    crossing: float | None = None
    for at, level in points:
        if level < target:
            crossing = None
        elif crossing is None:
            share = (target - before[1]) / (level - before[1]) if level > before[1] else 1.0
            crossing = before[0] + max(0.0, share) * (at - before[0])
        before = (at, level)
    return crossing


def _times(runs: dict[Key, Rows], lines: dict[str, Label]) -> list[str]:
    names = ["ours over", "as like at the end", "exposures, whole", "CPU s, whole", "exposures, curves"]
    out = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for line, label in lines.items():
        pairs = [
            (runs[key[0], OURS, "1", key[3]], rows)
            for key, rows in runs.items()
            if key[1:3] == label and label[0] in PEERS and (key[0], OURS, "1", key[3]) in runs
        ]
        if pairs:
            out.append(f"| {line} | {' | '.join(_ratios(pairs))} |")
    return out


def _ratios(pairs: list[tuple[Rows, Rows]]) -> list[str]:
    """Return ratios of ours to theirs, medians and ranges: of whole runs where ours is as good, and to reach 98 %.

    Whole runs credit ours for the length of theirs, so neither ratio should be quoted without the other.
    """
    equal = [(ours, theirs) for ours, theirs in pairs if _likeness(ours) >= _likeness(theirs) - NEAR]
    cells = [
        _spread([curve(ours, along)[-1][0] / curve(theirs, along)[-1][0] for ours, theirs in equal])
        for along in ("exposures", "seconds")
    ]
    early = []
    for ours, theirs in pairs:
        other = curve(theirs, "exposures")
        target = 0.98 * other[-1][1]
        at, against = reached(curve(ours, "exposures"), target), reached(other, target)
        if at and against:
            early.append(at / against)
    return [f"{len(equal)} of {len(pairs)}", *cells, f"{_spread(early)}, {len(early)} of {len(pairs)}"]


def _likeness(rows: Rows) -> float:
    return float(values(last(rows), *FIGURES["likeness"]).mean())


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def sheet(path: Path, picture: Path, *, draw: int) -> None:
    """Save images of the same prompts by each recipe, one per row, and print the rows.

    `draw` is the seed that picks the subject and the prompts.
    """
    runs, rng = read(path), random.Random(draw)
    subject, seed = rng.choice(sorted({(key[0], key[3]) for key in runs if key[1] == OURS}))
    keys = [(subject, *label, seed) for label in table_lines(runs).values() if (subject, *label, seed) in runs]
    strips = [Image.open(strip(path, key)).convert("RGB") for key in keys]
    side = strips[0].height
    places = range(0, strips[0].width, side + 2)  # as save_grid lays them out
    picked = sorted(rng.sample(list(places), min(PER_ROW, len(places))))
    canvas = Image.new("RGB", (side * len(picked), side * len(strips)))
    for row, images in enumerate(strips):
        for column, place in enumerate(picked):
            canvas.paste(images.crop((place, 0, place + side, side)), (column * side, row * side))
        print(f"{row + 1}: {', '.join(keys[row])}")
    canvas.save(picture)
