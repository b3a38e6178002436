"""Which cards there are, by the driver and by the user's variables, and what a process sees of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.runs.test_run import held, make
from tests.unit.test_nvidia import answering, forget
from trainer import worker
from trainer.errors import UserError
from trainer.machine import nvidia
from trainer.runs import Run, cards, events
from trainer.runs.cards import Card, Wish

THREE = """case "$1" in
*=index,uuid*) echo "0, GPU-aa1, 2048"; echo "1, GPU-bb2, 12288"; echo "2, GPU-cc3, 24576" ;;
*) for n in 0 1 2; do echo "576.80, 8.6, NVIDIA GeForce RTX 3060"; done ;;
esac"""
ONE = THREE.replace('; echo "1, GPU-bb2, 12288"; echo "2, GPU-cc3, 24576"', "").replace("0 1 2", "0")


@pytest.fixture
def driver(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in the place of the driver's, on a machine whose torch can use its cards; it has three."""
    answering(home / "nvidia-smi", THREE)
    monkeypatch.setenv("PATH", str(home), prepend=os.pathsep)
    monkeypatch.setattr(nvidia, "built_for", lambda: (12, 8))
    for variable in (cards.CUDA, cards.HIP, "LIMNER_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    yield home / "nvidia-smi"
    forget()


def test_the_driver_lists_the_cards_and_the_only_one_needs_no_selection(driver: Path) -> None:
    largest, middle, small = cards.known()
    assert (largest, middle) == (Card("2", "GPU-cc3"), Card("1", "GPU-bb2"))
    assert small == Card("0", "GPU-aa1", is_small=True)
    assert Wish(3).choose(cards.known()) == (largest, middle)
    assert Wish(1, ("0",)).choose(cards.known()) == (small,)
    with pytest.raises(UserError, match="3 devices, but there are 2 GPUs"):
        cards.check(Wish(3))
    cards.check(Wish(2))
    with pytest.raises(UserError, match="There is no card 3 on this machine"):
        cards.check(Wish(2, ("0", "3")))
    answering(driver, ONE)
    assert cards.known() == (Card("0"),)
    with cards.visible(cards.known()):
        assert cards.CUDA not in os.environ


@pytest.mark.parametrize(
    ("variable", "names", "numbers"),
    [
        (cards.CUDA, "2, 0", ["2", "0"]),
        (cards.CUDA, "GPU-cc3,0", ["2", "0"]),
        (cards.CUDA, "1,7,0", ["1"]),
        (cards.CUDA, "0,-1,1", ["0"]),
        (cards.CUDA, "MIG-ab-1,MIG-ab-2", ["MIG-ab-1", "MIG-ab-2"]),
        (cards.CUDA, "", [""]),
        (cards.HIP, "0,1", ["2", "1", "0"]),
        ("LIMNER_DEVICE", "cpu", [""]),
    ],
)
def test_the_users_variable_says_which(
    driver: Path, monkeypatch: pytest.MonkeyPatch, variable: str, names: str, numbers: list[str]
) -> None:
    monkeypatch.setenv(variable, names)
    assert [card.number for card in cards.known()] == numbers
    assert len({card.lock for card in cards.known()}) == len(numbers)


def test_a_machine_of_which_nothing_is_known_is_one_device(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "built_for", lambda: None)
    assert cards.known() == (Card(""),), "a torch for CPUs uses none of the cards"
    monkeypatch.setattr(nvidia, "PROGRAMS", ("no-such-program",))
    forget()
    assert cards.known() == (Card(""),)
    assert cards.wish(make().config()) == Wish(1)
    with pytest.raises(UserError, match="There is no card 0 on this machine"):
        cards.check(Wish(1, ("0",)))
    monkeypatch.setenv(cards.HIP, "0,1")
    assert cards.known() == (Card("0", "0"), Card("1", "1")), "AMD's are those that the user names"
    with cards.visible(cards.known()[1:]):
        assert os.environ[cards.HIP] == "1"
    assert os.environ[cards.HIP] == "0,1"


def test_the_task_of_a_run_sees_its_cards(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setitem(worker.TASKS, "train", lambda run: seen.append(os.environ.get(cards.CUDA)))
    run = make()
    with held(cards.known()[0].lock):
        assert worker.work(run) == 0
        assert cards.beside_runs() == (Card("1", "GPU-bb2"),)
    assert seen == ["GPU-bb2"]
    assert cards.CUDA not in os.environ
    assert numbers(run) == [("1",)]
    assert cards.beside_runs() == (Card("2", "GPU-cc3"),)
    run = make()  # with several processes
    training = run.config().training.model_copy(update={"cards": "1, 2"})
    run.save_config(run.config().model_copy(update={"training": training}))
    assert worker.work(run) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(cards.CUDA, "1,0")
    assert worker.work(run) == 0
    assert seen[1:] == ["GPU-cc3,GPU-bb2", "1,0"], "of a launcher's processes, those that its variable names"
    assert numbers(run) == [("2", "1"), ("1", "0")]


def numbers(run: Run) -> list[tuple[str, ...]]:
    return [event.cards for event in events.read(run.log)[0] if isinstance(event, events.Began) and event.cards]
