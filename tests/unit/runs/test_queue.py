"""The queue where there are several cards. Workers are claims of this process: what they hold are files' locks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from tests import faults
from tests.unit.runs.test_run import named
from trainer import config, runs, storage
from trainer.runs import Run, cards, queue
from trainer.runs.cards import Wish
from trainer.runs.queue import Claim

ONE, TWO = Wish(1), Wish(2)


@pytest.fixture(autouse=True)
def _two_cards(home: Path) -> Iterator[None]:
    with faults.injected("cards@2"):
        yield


@pytest.fixture
def _three_cards(_two_cards: None) -> Iterator[None]:
    with faults.injected("cards@3"):
        yield


Begin = Callable[[Run, Wish], Claim]


@pytest.fixture
def begin() -> Iterator[Begin]:
    with ExitStack() as locks:

        def claim(run: Run, wish: Wish) -> Claim:
            locks.enter_context(FileLock(run.lock))
            return Claim(run, wish)

        yield claim


def settle(*claims: Claim) -> list[str]:
    """Let those that wait look twice, as `wait_for_cards` does; return the numbers of the cards of each."""
    for claim in 2 * claims:
        if not claim.is_complete:
            claim.update()
        if claim.is_complete:
            storage.remove(claim.run.folder / "ask" / "start")
    return ["".join(card.number for card in claim.cards) for claim in claims]


def choose(run: Run, **training: object) -> None:
    settings = run.config()
    run.save_config(settings.model_copy(update={"training": settings.training.model_copy(update=training)}))


def test_a_run_for_two_cards_is_not_passed_by_runs_for_one(begin: Begin, tmp_path: Path) -> None:
    first, second, third, fourth = map(named, ("0001", "0002", "0003", "0004"))
    other = runs.create(config.build({"name": "x", "dataset": "rin"}), tmp_path / "other" / "outputs" / "x")
    holder, another = begin(first, ONE), begin(second, ONE)
    assert settle(holder, another) == ["0", "1"]
    both, behind = begin(third, TWO), begin(fourth, ONE)
    elsewhere = begin(other, ONE)  # in the queue of another server, where nobody is ahead
    holder.release()
    assert settle(both, behind, elsewhere) == ["0", "", ""]
    another.release()
    assert settle(both, behind, elsewhere) == ["01", "", ""]
    both.release()
    assert settle(behind, elsewhere) == ["0", "1"]


def test_what_a_run_has_gathered_goes_to_who_passes_it(begin: Begin) -> None:
    first, second, third, fourth, fifth = map(named, ("0001", "0002", "0003", "0004", "0005"))
    holder, another = begin(first, ONE), begin(second, ONE)
    assert settle(holder, another) == ["0", "1"]
    both, behind = begin(third, TWO), begin(fourth, ONE)
    another.release()
    assert settle(both, behind) == ["1", ""]
    queue.hold(third)
    assert settle(both, behind) == ["", "1"]
    queue.hold(third, release=True)
    behind.release()
    newest = begin(fifth, ONE)
    assert settle(both, newest) == ["1", ""]
    queue.move(fifth, 1)
    assert settle(both, newest) == ["", "1"]


def test_a_reserved_card_is_free_for_who_reserved_it_alone() -> None:
    first, second = cards.known()
    with FileLock(first.reservation):
        assert cards.free() == (second,)
        assert cards.free(reserved=[first]) == (first, second)


def test_two_runs_for_two_cards_do_not_wait_for_each_other(begin: Begin) -> None:
    first, second = (begin(named(name), TWO) for name in ("0001", "0002"))
    left, right = cards.known()
    with FileLock(right.reservation):
        assert settle(first) == [""]
        assert not runs.is_locked(left.reservation), "it reserves both or none"
    assert settle(first, second) == ["01", ""]
    first.release()
    assert settle(second) == ["01"]


@pytest.mark.usefixtures("_three_cards")
def test_what_a_run_has_counts_when_cards_are_free_at_once() -> None:
    claim = Claim(named("0001"), TWO)
    first, second, third = cards.known()
    with FileLock(first.lock), FileLock(second.lock):
        claim.update()
        assert claim.cards == (third,)
        assert not claim.is_complete
    claim.update()
    assert claim.is_complete
    assert claim.cards == (first, third)
    claim.release()


def test_who_can_begin_at_once_is_not_in_the_line() -> None:
    first, second, third = map(named, ("0001", "0002", "0003"))
    assert queue.line() == [third]
    assert [queue.position(run) for run in (first, second, third)] == [0, 0, 1]
    choose(second, devices=2)
    assert queue.line() == [second, third], "the second is not passed by"
    assert [queue.position(run) for run in (first, second, third)] == [0, 1, 2]
    queue.hold(second)
    assert queue.line() == [second]
    assert queue.position(third) == 0
    first.config_file.write_text("broken")
    assert queue.position(first) == 0


def test_a_run_that_waits_for_its_card_lets_others_pass(begin: Begin) -> None:
    first, second, third = map(named, ("0001", "0002", "0003"))
    holder = begin(first, ONE)
    assert settle(holder) == ["0"]
    choose(second, cards="0")
    picky = begin(second, cards.wish(second.config()))
    assert queue.line() == [second], "the third can begin at once"
    assert settle(picky, begin(third, ONE)) == ["", "1"]
    holder.release()
    assert settle(picky) == ["0"]
