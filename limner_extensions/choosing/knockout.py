"""The order of choices between two candidates, and the winner.

The best one so far stays in. First the checkpoints meet at strength 1, the finished file first. Then the winner meets
itself at other strengths, away from 1 as long as that is better; then the checkpoints beside it meet it at its new
strength, and strengths between those of before.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

MOST = 12  # choices with up to 5 checkpoints
STRIDE, FINE = 0.2, 0.1  # between strengths
LOWEST, HIGHEST = 0.4, 1.5


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, by its key in `ui.state.adapter_choices`, at a strength."""

    key: str
    strength: float


@dataclass(frozen=True)
class Pair:
    """A choice: the best candidate so far, and another one."""

    best: Candidate
    other: Candidate


Game = Generator[Pair, bool, Candidate]


def after(keys: Sequence[str], wins: Sequence[bool]) -> Pair | Candidate:
    """Return the next choice after some, each of which is True if the other one won; at their end, the winner.

    `keys` are those of the checkpoints, in the order of their training, and of the finished file, which is the last.
    """
    game = _play(keys)
    try:
        pair = next(game)
        for is_won in wins:
            pair = game.send(is_won)
    except StopIteration as end:
        winner: Candidate = end.value
        return winner
    return pair


def _play(keys: Sequence[str]) -> Game:
    best = Candidate(keys[-1], 1.0)
    for key in reversed(keys[:-1]):
        best = yield from _meet(best, Candidate(key, 1.0))
    best = yield from _away_from_1(best)
    if best.strength != 1.0:
        place = keys.index(best.key)
        for key in (*keys[max(0, place - 1) : place], *keys[place + 1 : place + 2]):
            best = yield from _meet(best, Candidate(key, best.strength))
    middle = best.strength
    for change in (-FINE, FINE):
        if best.strength == middle and LOWEST <= (strength := round(middle + change, 2)) <= HIGHEST:
            best = yield from _meet(best, Candidate(best.key, strength))
    return best


def _away_from_1(best: Candidate) -> Game:
    """Try lower strengths, or higher ones if the first is no better."""
    for change in (-STRIDE, STRIDE):
        while LOWEST <= (strength := round(best.strength + change, 2)) <= HIGHEST:
            before, best = best, (yield from _meet(best, Candidate(best.key, strength)))
            if best == before:
                break
        if best.strength != 1.0:
            break
    return best


def _meet(best: Candidate, other: Candidate) -> Game:
    is_won = yield Pair(best, other)
    return (best, other)[is_won]
