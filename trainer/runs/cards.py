"""The cards that runs share: which there are, a lock for each, and how a process sees only its own. Torch-free.

NVIDIA's driver lists its cards. CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES, if the user has set it, says which of them
to use, and is the only word on AMD's. Where neither tells of several, there is one device: the machine.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from trainer import paths
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import ngettext
from trainer.machine import nvidia
from trainer.runs.run import all_runs
from trainer.runs.view import is_locked, look

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
SMALL = 0.5  # of the largest card's memory: a card with less, such as one for the screen, is used only if it is named


@dataclass(frozen=True)
class Card:
    """A card by its number, as nvidia-smi counts, and its name in the variable that selects cards.

    Without a name it is all that this machine has, and nothing needs to be selected.
    """

    number: str
    name: str = ""
    is_small: bool = False

    @property
    def lock(self) -> Path:
        """Path of the lock held by the worker that uses the card; the servers of a machine share it."""
        stem = f".card-{paths.safe_name(self.number, 'x')}" if self.name else ".device"
        return paths.shared() / "outputs" / f"{stem}.lock"

    @property
    def reservation(self) -> Path:
        """Path of the lock held by the worker that takes the card next."""
        return self.lock.with_suffix(".next.lock")


@dataclass(frozen=True)
class Wish:
    """The cards that a run asks for: how many, and of which numbers; () = of any that is not small."""

    count: int = 1
    numbers: tuple[str, ...] = ()

    def fits(self, card: Card) -> bool:
        """Return True if a card is one of those asked for."""
        return card.number in self.numbers if self.numbers else not card.is_small

    def choose(self, free: Iterable[Card]) -> tuple[Card, ...]:
        """Return the cards to take of those that are free; fewer than asked for if there are not enough."""
        return tuple(card for card in free if self.fits(card))[: self.count]


def known() -> tuple[Card, ...]:
    """Return the cards that this process may use, those with the most memory first; the machine, if none is known."""
    machine = (Card(""),)
    if os.environ.get("LIMNER_DEVICE") == "cpu":
        return machine
    if nvidia.advice():  # torch cannot use them
        return machine
    variable = _variable()
    selected = os.environ.get(variable)
    cards = _installed() if selected is None and variable == CUDA else _selected(selected or "")
    return cards or machine


def _variable() -> str:
    """Return the variable that selects the cards that torch sees."""
    return CUDA if nvidia.built_for() else HIP


def _installed() -> tuple[Card, ...]:
    """Return the cards that the driver lists, the largest first; the only one needs no name."""
    cards = sorted(nvidia.installed(), key=lambda card: -card.memory)
    if len(cards) == 1:
        return (Card(cards[0].number),)
    # By UUID: without CUDA_DEVICE_ORDER, CUDA counts the cards in another order than nvidia-smi.
    return tuple(Card(card.number, card.uuid, card.memory < SMALL * cards[0].memory) for card in cards)


def _selected(value: str) -> tuple[Card, ...]:
    """Return the cards that the user's variable selects, by number or UUID; as in CUDA, a wrong one ends the list."""
    numbers = {card.uuid: card.number for card in nvidia.installed()}

    def number(name: str) -> str:
        return next((numbers[uuid] for uuid in numbers if uuid.startswith(name)), name)

    def is_there(name: str) -> bool:
        return bool(name) and name[0] != "-" and not (numbers and name.isdecimal() and name not in numbers.values())

    return tuple(Card(number(name), name) for name in takewhile(is_there, map(str.strip, value.split(","))))


def free(held: Collection[Card] = (), reserved: Collection[Card] = ()) -> tuple[Card, ...]:
    """Return the cards that no other run holds or has reserved than the one that has these."""

    def is_free(card: Card) -> bool:
        return not is_locked(card.lock) and (card in reserved or not is_locked(card.reservation))

    return tuple(card for card in known() if card in held or is_free(card))


def has_spare() -> bool:
    """Return True if there are several cards, of which one is for whoever needs it now."""
    return len(known()) > 1 and bool(Wish().choose(free()))


def beside_runs() -> tuple[Card, ...]:
    """Return the card to generate on beside runs: one that no run holds, else that of a paused one, else the first."""
    if spare := Wish().choose(free()):
        return spare
    paused = {number for view in map(look, all_runs()) if view.paused for number in view.state.cards}
    return (tuple(card for card in known() if card.number in paused) or known())[:1]


def wish(config: TrainConfig | None) -> Wish:
    """Return what a run asks for by its settings; one card if there are none, as of a caption run."""
    if config is None:
        return Wish()
    training, is_one = config.training, len(known()) == 1
    return Wish(1 if is_one else config.planned_devices or 1, training.card_numbers)


def check(wish: Wish) -> None:
    """Check that there are the cards that a run asks for.

    Raises:
        UserError: one that it names is not there, or there are fewer.
    """
    numbers = {card.number for card in known()}
    if missing := [number for number in wish.numbers if number not in numbers]:
        raise UserError(
            "There is no card {number} on this machine.",
            "Name those that nvidia-smi lists in training.cards, or leave it empty.",
            number=missing[0],
        )
    fitting = [card for card in known() if wish.fits(card)]
    if len(fitting) < wish.count:
        raise UserError(
            "The run asks for {devices} devices, but there are {gpus} GPUs.",
            "Set training.devices to that number or less.",
            devices=wish.count,
            gpus=len(fitting),
        )


@contextmanager
def visible(cards: Sequence[Card]) -> Iterator[None]:
    """Let this process, which has not asked torch for cards yet, and those that it starts see only these cards."""
    names, variable = [card.name for card in cards if card.name], _variable()
    before = os.environ.get(variable)
    if names:
        os.environ[variable] = ",".join(names)
    try:
        yield
    finally:
        if names:
            del os.environ[variable]
        if names and before is not None:
            os.environ[variable] = before


def describe(numbers: Sequence[str]) -> str:
    """Describe cards by their numbers; "" without any."""
    if not numbers:
        return ""
    return ngettext("card {numbers}", "cards {numbers}", len(numbers), numbers=", ".join(numbers))
