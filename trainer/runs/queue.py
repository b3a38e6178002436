"""Run queue: one worker per run; each waits for the cards that it needs, first come first served. Built on file locks.

The order can be changed: `outputs/.queue.json` lists runs by name, and those that are not in it come after them. A run
on hold keeps its place and lets others pass. So does one that waits for cards that others do not need.
"""

import json
import time
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock, Timeout

from trainer import foreign_text, paths, runs, storage
from trainer.errors import UserError
from trainer.runs import cards
from trainer.runs.cards import Card, Wish
from trainer.runs.run import HOLD, Run, StopRequestedError

ORDER = ".queue.json"
LOOK = 0.2  # seconds that others may hold a lock to see whether it is held
Place = tuple[int, str]


class Claim:
    """The cards that the worker of a run has for itself: none, some of those that it needs, or all.

    A run for several cards reserves all that it could take before it takes the first, or none. So they come together
    though runs for one are waiting too, and no two runs wait for each other.
    """

    def __init__(self, run: Run, wish: Wish) -> None:
        self.run, self.wish = run, wish
        self._locks: dict[Card, FileLock] = {}
        self._reservations: dict[Card, FileLock] = {}

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards that this worker has."""
        return tuple(card for card in cards.known() if card in self._locks)

    @property
    def is_complete(self) -> bool:
        """True if they are as many as the run needs."""
        return len(self._locks) == self.wish.count

    def update(self) -> None:
        """Take what is free for this run, and give back what is for others now."""
        free = cards.free(self._locks, self._reservations)
        left = () if self.run.on_hold else self._left(free)
        taken = set(free).difference(left)
        if taken.intersection((*self._locks, *self._reservations)):
            self.release()
        share = self.wish.choose(left)
        if share and self.wish.count > 1:
            if not self._reservations:
                self._reserve(taken)
            reserved = [card for card in left if card in self._reservations]
            share = self.wish.choose(sorted(reserved, key=lambda card: card not in self._locks))  # what it has first
        for card in share:
            if card not in self._locks:
                _acquire(card.lock, self._locks, card)
        if self.is_complete:
            _release(self._reservations)

    def _left(self, free: tuple[Card, ...]) -> tuple[Card, ...]:
        """Return what those ahead of the run leave of the free cards."""
        if self.run.folder.parent.resolve() != paths.outputs().resolve():
            return free
        for other in _ahead(self.run) if free else ():
            if runs.is_locked(other.lock):
                free = _without(free, _wish(other).choose(free))
        return free

    def _reserve(self, taken: Collection[Card]) -> None:
        """Reserve all cards that the run could take, but for those taken by others; none if there are not enough."""
        wanted = [card for card in cards.known() if self.wish.fits(card) and card not in taken]
        enough = len(wanted) >= self.wish.count
        if not (enough and all(_acquire(card.reservation, self._reservations, card) for card in wanted)):
            _release(self._reservations)

    def release(self) -> None:
        """Give everything back."""
        _release(self._locks)
        _release(self._reservations)


def _acquire(path: Path, held: dict[Card, FileLock], card: Card) -> bool:
    """Take a lock of a card; tell whether it was free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOOK)
    except Timeout:
        return False
    held[card] = lock
    return True


def _release(held: dict[Card, FileLock]) -> None:
    while held:
        held.popitem()[1].release()


def _without(free: tuple[Card, ...], taken: tuple[Card, ...]) -> tuple[Card, ...]:
    return tuple(card for card in free if card not in taken)


def _wish(run: Run) -> Wish:
    """Return what a waiting run asks for; one card if its settings cannot be read, of which it is going to tell."""
    try:
        return cards.wish(run.config())
    except (UserError, OSError):
        return Wish()


def lock_run(run: Run) -> FileLock:
    """Take the lock of a run for the rest of this process's life.

    Raises:
        UserError: another worker has it.
    """
    # `runs.is_locked` takes the lock for an instant, hence the timeout.
    lock = FileLock(run.lock)
    try:
        storage.take_lock(lock, timeout=5)
    except Timeout:
        raise UserError("The run {id!r} is already running.", "Watch it, or stop it first.", id=run.id) from None
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / "start").touch()
    return lock


def wait_for_cards(run: Run, wish: Wish | None = None) -> Claim:
    """Wait until the cards that a run needs are free and nobody ahead of it, in the order of `waiting`, wants them.

    Among runs of different servers, each of which has its own queue, any may be the next.

    Raises:
        UserError: there are not that many cards.
        StopRequestedError: the run was asked to stop while it waited.
    """
    wish = wish or Wish()
    cards.check(wish)
    (paths.shared() / "outputs").mkdir(parents=True, exist_ok=True)
    claim = Claim(run, wish)
    try:
        while True:
            claim.update()
            if claim.is_complete:
                storage.remove(run.folder / "ask" / "start")
                return claim
            if run.take_request("stop"):
                raise StopRequestedError
            time.sleep(0.3)
    except BaseException:
        claim.release()
        raise


def _ahead(run: Run) -> list[Run]:
    """Return the waiting runs whose turn comes before that of this one."""
    order = _order()
    return [other for other in waiting() if _place(other, order) < _place(run, order) and not other.on_hold]


def waiting() -> list[Run]:
    """Return the runs that wait for cards of this machine, also those on hold, in the order of the queue."""
    started = [run for run in runs.all_runs() if (run.folder / "ask" / "start").exists() and not run.cluster]
    order = _order()
    return sorted((run for run in started if runs.look(run).status == "waiting"), key=lambda run: _place(run, order))


def line() -> list[Run]:
    """Return the waiting runs but for those that can begin at once, as the cards that they need are free."""
    queue, standing = waiting(), []
    free = cards.free() if queue else ()  # whose locks a page that is only open need not look at
    for run in queue:
        if free and not run.on_hold:
            wish = _wish(run)
            taken = wish.choose(free)
            free = _without(free, taken)
            if len(taken) == wish.count:
                continue
        standing.append(run)
    return standing


def position(run: Run) -> int:
    """Return the position of a run in the line, 1 = next; 0 if it has what it needs or can take it at once."""
    place = 1
    for other in line():
        if other == run:
            return place
        place += not other.on_hold
    return 0


# Change the order -----------------------------------------------------------------------------------------------


def move(run: Run, place: int) -> None:
    """Give a waiting run another place among all that wait, 1 = the first.

    Raises:
        UserError: it does not wait.
    """
    with FileLock(paths.outputs() / f"{ORDER}.lock"):
        queue = waiting()
        if run not in queue:
            raise _not_waiting()
        queue.remove(run)
        queue.insert(max(0, place - 1), run)
        storage.write(paths.outputs() / ORDER, json.dumps([other.id for other in queue]))


def hold(run: Run, *, release: bool = False) -> None:
    """Keep a waiting run from taking cards until it is released.

    Raises:
        UserError: it does not wait.
    """
    if release:
        storage.remove(run.folder / "ask" / HOLD)
    elif not run.cluster and runs.look(run).status == "waiting":
        (run.folder / "ask" / HOLD).touch()
    else:
        raise _not_waiting()


def _not_waiting() -> UserError:
    return UserError("This run does not wait for the device.", "Pause or stop it instead, or start it again.")


def _place(run: Run, order: dict[str, int]) -> Place:
    return order.get(run.id, len(order)), run.id


def _order() -> dict[str, int]:
    """Return the places of the runs that waited when one was moved; {} if none was, or the file is damaged."""
    try:
        names = foreign_text.read_json(paths.outputs() / ORDER)
    except (OSError, ValueError):
        return {}
    return {str(name): place for place, name in enumerate(names)} if isinstance(names, list) else {}
