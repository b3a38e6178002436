"""Choices between two images lead to the best checkpoint and strength, by the scores of the benchmarks."""

import csv
import random
from collections import defaultdict
from statistics import fmean

import numpy as np
import pytest

from limner_extensions.choosing.knockout import MOST, Candidate, Pair, after
from tests.conftest import CHECKOUT

FIGURES = CHECKOUT / "benchmarks" / "figures"
STRENGTHS = [round(0.4 + 0.1 * number, 2) for number in range(12)]
Scores = dict[Candidate, float]


def rows(name: str) -> list[dict[str, str]]:
    with (FIGURES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_of_checkpoints() -> list[dict[str, float]]:
    """Return the scores of the last five checkpoints of each subject and seed."""
    runs: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows("checkpoints.csv"):
        runs[row["subject"], row["seed"]][row["step"]] = float(row["score"])
    return [dict(list(run.items())[-5:]) for run in runs.values()]


def scores_of_strengths() -> list[tuple[float, ...]]:
    """Return likeness times adherence at three strengths, for each subject and recipe."""
    figures: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("guidance.csv"):
        if float(row["guidance"]) == 5 and row["prompts"] == "called" and row["recipe"] != "base":
            score = float(row["likeness"]) * float(row["adherence"])
            figures[row["subject"], row["recipe"]][float(row["strength"])].append(score)
    return [tuple(fmean(by[at]) for at in MEASURED) for by in figures.values() if set(MEASURED) <= by.keys()]


MEASURED = (0.7, 1.0, 1.3)


def surfaces() -> list[Scores]:
    """Return the scores of all checkpoints at all strengths, each of both from another run."""
    strengths, made = scores_of_strengths(), []
    for number, run in enumerate(scores_of_checkpoints()):
        three = strengths[number % len(strengths)]
        made.append(
            {
                Candidate(step, at): score + float(np.interp(at, MEASURED, three)) - three[1] - 0.2 * abs(at - 1) ** 2
                for step, score in run.items()
                for at in STRENGTHS
            }
        )
    return made


def choose(scores: Scores, blur: float) -> tuple[Candidate, int]:
    """Play to the end with somebody who sees scores give or take `blur`; returns the winner and the choices."""
    keys, wins, dice = list(dict.fromkeys(candidate.key for candidate in scores)), list[bool](), random.Random(7)
    while isinstance(pair := after(keys, wins), Pair):
        seen = [scores[candidate] + dice.uniform(-blur, blur) for candidate in (pair.best, pair.other)]
        wins.append(seen[1] > seen[0])
    return pair, len(wins)


@pytest.mark.parametrize(("blur", "miss"), [(0.0, 0.001), (0.02, 0.02)])
def test_choices_lead_close_to_the_best(blur: float, miss: float) -> None:
    for scores in surfaces():
        winner, choices = choose(scores, blur)
        assert choices <= MOST
        assert max(scores.values()) - scores[winner] <= miss


def test_who_sees_no_difference_keeps_the_last_checkpoint() -> None:
    assert after(["1", "2", "3"], [False] * 6) == Candidate("3", 1.0)
    assert isinstance(after(["1", "2", "3"], [False] * 5), Pair)


def test_an_adapter_without_checkpoints_has_only_its_strength() -> None:
    assert after(["x"], [True, True, True]) == Pair(Candidate("x", 0.4), Candidate("x", 0.5))
    assert after(["x"], [False, True, True]) == Pair(Candidate("x", 1.4), Candidate("x", 1.3))


@pytest.mark.parametrize("number", range(1, 6))
def test_nobody_is_asked_twice_or_too_often(number: int) -> None:
    """Whatever is chosen, each candidate meets another one once."""
    keys = [str(step) for step in range(number)]
    for seed in range(500):
        dice, wins, met = random.Random(seed), list[bool](), set[frozenset[Candidate]]()
        while isinstance(pair := after(keys, wins), Pair):
            assert frozenset((pair.best, pair.other)) not in met
            met.add(frozenset((pair.best, pair.other)))
            wins.append(dice.random() < 0.5)
        assert len(wins) <= MOST
