"""The queue where there are several cards. Workers are threads of this process: what they hold are files' locks."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import wait
from tests.unit.runs.test_run import named
from trainer import config, runs
from trainer.runs import Run, cards, queue
from trainer.runs.cards import Wish

ONE, TWO = Wish(1), Wish(2)


@pytest.fixture(autouse=True)
def _two_cards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", "cards@2")


class Worker:
    """What the worker of a run does about its cards, in a thread."""

    def __init__(self, run: Run, wish: Wish) -> None:
        self.run, self.has = run, ""
        self._alive, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(wish,))
        self._thread.start()
        self._alive.wait()

    def _work(self, wish: Wish) -> None:
        with FileLock(self.run.lock):
            self._alive.set()
            try:
                claim = queue.wait_for_cards(self.run, wish)
            except runs.StopRequestedError:
                return
            self.has = "".join(card.number for card in claim.cards)
            self._end.wait()
            claim.release()

    def gets(self, numbers: str) -> None:
        """Wait until it has these cards."""
        wait(lambda: self.has)
        assert self.has == numbers

    def end(self) -> None:
        """End it, whether it has its cards or waits."""
        runs.request(self.run, "stop")
        self._end.set()
        self._thread.join()


Start = Callable[[Run, Wish], Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Begin to work on a run; all end with the test."""
    workers: list[Worker] = []

    def begin(run: Run, wish: Wish) -> Worker:
        workers.append(Worker(run, wish))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.end()


def stays(what: Callable[[], object], seconds: float = 0.7) -> None:
    """Longer than a worker that waits takes to look again twice."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert what()
        time.sleep(0.05)


def test_a_run_for_two_cards_is_not_passed_by_runs_for_one(start: Start, tmp_path: Path) -> None:
    first, second, third, fourth = map(named, ("0001", "0002", "0003", "0004"))
    of_ben = runs.create(config.build({"name": "x", "dataset": "rin"}), tmp_path / "people" / "ben" / "outputs" / "x")
    holder, another = start(first, ONE), start(second, ONE)
    wait(lambda: holder.has and another.has)
    both, behind = start(third, TWO), start(fourth, ONE)
    holder.end()
    wait(lambda: runs.is_locked(cards.known()[1].reservation))
    elsewhere = start(of_ben, ONE)  # in the line of another user, where nobody is ahead
    stays(lambda: not (both.has or behind.has or elsewhere.has))
    another.end()
    both.gets("01")
    stays(lambda: not (behind.has or elsewhere.has))
    both.end()
    wait(lambda: {behind.has, elsewhere.has} == {"0", "1"})


def test_what_a_run_has_gathered_goes_to_who_passes_it(start: Start) -> None:
    first, second, third, fourth, fifth = map(named, ("0001", "0002", "0003", "0004", "0005"))
    start(first, ONE).gets("0")
    another = start(second, ONE)
    another.gets("1")
    both, behind = start(third, TWO), start(fourth, ONE)
    another.end()
    wait(lambda: runs.is_locked(cards.known()[1].reservation))
    stays(lambda: not behind.has)
    queue.hold(third)
    behind.gets("1")
    queue.hold(third, release=True)
    behind.end()
    wait(lambda: runs.is_locked(cards.known()[1].reservation))
    newest = start(fifth, ONE)
    stays(lambda: not newest.has)
    queue.move(fifth, 1)
    newest.gets("1")
    assert not both.has


def test_a_reserved_card_is_free_for_who_reserved_it_alone() -> None:
    first, second = cards.known()
    with FileLock(first.reservation):
        assert cards.free() == (second,)
        assert cards.free(reserved=[first]) == (first, second)


def test_two_runs_for_two_cards_do_not_wait_for_each_other(start: Start) -> None:
    first, second = map(named, ("0001", "0002"))
    workers = [start(first, TWO), start(second, TWO)]
    wait(lambda: any(worker.has for worker in workers))
    stays(lambda: not all(worker.has for worker in workers))
    next(worker for worker in workers if worker.has).end()
    wait(lambda: all(worker.has == "01" for worker in workers))


def test_what_a_run_has_counts_when_cards_are_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_FAULT", "cards@3")
    claim = queue.Claim(named("0001"), TWO)
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
    training = first.config().training.model_copy(update={"devices": 2})
    second.save_config(second.config().model_copy(update={"training": training}))
    assert queue.line() == [second, third], "the second is not passed by"
    assert [queue.position(run) for run in (first, second, third)] == [0, 1, 2]
    queue.hold(second)
    assert queue.line() == [second]
    assert queue.position(third) == 0
    first.config_file.write_text("broken")
    assert queue.position(first) == 0


def test_a_run_that_waits_for_its_card_lets_others_pass(start: Start) -> None:
    first, second, third = map(named, ("0001", "0002", "0003"))
    holder = start(first, ONE)
    holder.gets("0")
    training = second.config().training.model_copy(update={"cards": "0"})
    second.save_config(second.config().model_copy(update={"training": training}))
    picky = start(second, cards.wish(second.config()))
    assert queue.line() == [second], "the third can begin at once"
    start(third, ONE).gets("1")
    assert not picky.has
    holder.end()
    picky.gets("0")
