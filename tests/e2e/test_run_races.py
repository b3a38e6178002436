"""Acts on runs while a request is held back: what was seen at the click is what is trained, stopped or deleted.

As in `test_races`, the pairs come from a table of acts. Nothing trains: the tests hold the device, and the locks of
runs that wait.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, product

import pytest
from filelock import FileLock

from tests.conftest import HANG, wait
from tests.e2e.conftest import BrowserContext, Page, Server, copy_project
from tests.e2e.slow_network import Hold, SlowNetwork
from tests.e2e.test_images import fill
from tests.e2e.test_races import PERSON, SETTLED, WAYS, choose_other, context, hold_each, network, show_tab, until
from trainer import config, runs
from trainer.runs import Run, archive, cards, events
from ui.tabs import train

__all__ = ["context", "network"]

NAMES = ("first", "second", "third", "last")
BINNED = ("third", "last")  # where runs are over: two, as *Restore* may be clicked twice
NUMBERS = count()  # each case has runs of its own, as the server remembers the settings of a run
OLD = "2026-01-01"
# Notes which run a button is about that is clicked.
CLICKED = (
    "addEventListener('click', ({ target }) => { "
    "window.run = target.closest('[data-run]')?.dataset.run ?? window.run; }, true)"
)


@dataclass
class State:
    """Settings of the next run, and what is on disk, with the names of runs."""

    form: dict[str, object]
    started: list[dict[str, object]] = field(default_factory=list)  # what runs that were started train
    requests: dict[str, set[str]] = field(default_factory=dict)  # requests to the runs that were there
    removed: list[str] = field(default_factory=list)  # the latest at the end
    run: str = ""  # the run that was chosen; "" if none was


def name(run: Run) -> str:
    return run.id[18:]


def on_disk(project: str) -> list[object]:
    """Return what is started, asked and removed, as in `State`."""
    started, requests = [], {}
    for run in reversed(runs.all_runs()):
        if run.id.startswith(OLD):
            requests[name(run)] = {file.name for file in (run.folder / "ask").iterdir()} - {"start"}
            continue
        made = run.config()
        assert made.dataset == project
        length = {"steps": made.training.steps, "exposures": made.training.exposures}
        started.append({"name": made.name, "trigger": made.trigger, "preset": made.preset, **length})
    removed = [folder.name.partition(".")[0][18:] for folder in reversed(archive.deleted())]
    return [started, requests, removed]


@dataclass(frozen=True)
class Act:
    """Something that a person does, and what it changes; `change` gets the name of the run that was clicked."""

    do: Callable[[Page], None]
    change: Callable[[State, str], None] = lambda _state, _run: None


def press(button: str) -> Callable[[Page], None]:
    return lambda page: page.locator(f"{button} >> visible=true").first.click()


def typed(field: str, text: str) -> Callable[[Page], None]:
    return lambda page: fill(page, field, text)


def becomes(**values: object) -> Callable[[State, str], None]:
    return lambda state, _run: state.form.update(values)


def edit_steps(page: Page) -> None:
    advanced = page.locator("#advanced").get_by_text("Advanced")
    advanced.click()
    fill(page, "form-training-steps", "7")
    advanced.click()


def started(state: State, _run: str) -> None:
    state.started.append(dict(state.form))
    state.run = str(state.form["name"])


def asked(request: str) -> Callable[[State, str], None]:
    return lambda state, run: state.requests.get(run, set()).add(request)  # one that was just started takes it at once


def choose_run(page: Page) -> None:
    page.locator("#run input").click()
    page.get_by_role("option", name="first").click()


def chosen(state: State, _run: str) -> None:
    state.run = "first"


def press_in_row(button: str, place: int = 0) -> Callable[[Page], None]:
    def do(page: Page) -> None:
        row = page.locator(".run-row:not(.leaving)").nth(place)
        if not row.locator(".more[open]").count():
            row.locator(".more summary").click()
        row.locator(f"button.{button}").click()

    return do


def deleted(state: State, run: str) -> None:
    del state.requests[run]
    state.removed.append(run)


def restored(state: State, _run: str) -> None:
    state.requests[state.removed.pop()] = set()


def rename(page: Page) -> None:
    press_in_row("rename", -1)(page)
    page.locator("dialog.ask[open] input").fill("renamed")
    page.locator("dialog.ask[open] .yes").click()


def renamed(state: State, run: str) -> None:
    state.requests["renamed"] = state.requests.pop(run)


FORM = {
    "edit the steps": Act(edit_steps, becomes(steps=7)),
    "type a name": Act(typed("name", "mine"), becomes(name="mine")),
    "type the trigger": Act(typed("train-trigger", "zorblax"), becomes(trigger="zorblax")),
    "choose a length": Act(
        lambda page: page.get_by_label("Quick").check(), becomes(**train.exposures("quick", "character", "micro"))
    ),
    "choose a preset": Act(
        lambda page: page.locator("#preset").get_by_text("Style").click(),
        becomes(preset="style", **train.exposures("", "style", "micro")),
    ),
}
QUEUE = {
    "stop": Act(press("button[data-act=stop]"), asked("stop")),
    "hold": Act(press("#queue button[data-act=hold]"), asked("hold")),
    "move": Act(press("#queue button[data-act=move]:not(:disabled)")),
    "choose a run": Act(choose_run, chosen),
}
START = {"start": Act(press("#start"), started)}
ENDED = {
    "delete": Act(press_in_row("bin"), deleted),
    "rename": Act(rename, renamed),
    "restore": Act(press("#restore-run"), restored),
}
LEAVING = {
    "choose another project": Act(choose_other),
    "reload": Act(lambda page: page.reload()),
    "show another tab": Act(show_tab("Images")),
    "close the page": Act(lambda page: page.close(run_before_unload=True)),
}
ACTS = {**FORM, **QUEUE, **START, **ENDED, **LEAVING}
PAIRS = [
    *product(FORM, START),
    *product(START, (*FORM, *QUEUE, *LEAVING)),
    *product(QUEUE, (*QUEUE, *START, *LEAVING)),
    *product(ENDED, (*ENDED, *LEAVING)),
]
PAIRS.remove(("rename", "rename"))  # which is of one run


@pytest.fixture
def project(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], str]]:
    """Makes a project with four runs, all of which wait or have ended; returns its name."""
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))
    locks = ExitStack()

    def make(is_over: bool) -> str:
        clear()
        number = next(NUMBERS)
        (shared.home / "datasets").rename(shared.home / f"datasets before {number}")
        for project in (f"here{number}", f"there{number}"):
            copy_project("example-character", shared.home / "datasets" / project, "0[4-9].*", "1*")
        locks.enter_context(FileLock(cards.known()[0].lock))
        for second, of_run in enumerate(NAMES):
            made = runs.create(config.build({"name": of_run, "dataset": f"here{number}"}))
            folder = made.folder.with_name(f"{OLD}_{number // 60:02}{number % 60:02}0{second}_{of_run}")
            run = Run(made.folder.rename(folder))
            if is_over:
                run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
                run.report(events.Finished(step=9, export="x.safetensors"))
            else:
                (folder / "ask" / "start").touch()
                locks.enter_context(FileLock(run.lock))
            if is_over and of_run in BINNED:
                archive.delete(run)
        return f"here{number}"

    def clear() -> None:
        locks.close()
        shared.end_workers()
        for folder in (shared.home / "outputs").glob("20*"):
            shutil.rmtree(folder)
        shutil.rmtree(shared.home / "outputs" / ".bin", ignore_errors=True)

    yield make
    clear()


def begin(page: Page, address: str, *, is_over: bool) -> None:
    page.set_default_timeout(HANG * 1000)
    page.add_init_script(CLICKED)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    page.locator("html[data-filled]").wait_for(state="attached")
    page.locator(".run-row" if is_over else "#status [data-run]").first.wait_for()


@dataclass(frozen=True)
class Case:
    """The request with this number is held back after the first act, while the second is done."""

    pair: tuple[str, str]
    number: int

    @property
    def is_over(self) -> bool:
        return self.pair[0] in ENDED


def expected_before(project: str, *, is_over: bool) -> State:
    preset = "character"
    form = {"name": project, "trigger": "miraxo", "preset": preset, **train.exposures("", preset, "micro")}
    state = State(form, requests={of_run: set() for of_run in NAMES})
    for of_run in BINNED if is_over else ():
        deleted(state, of_run)
    return state


def hold_one(network: SlowNetwork, context: BrowserContext, project: str, case: Case) -> Hold:
    """Do both acts, and compare what is on the disk and on the page; returns what was held back."""
    network.settle()  # what arrives late belongs to the case before
    state = expected_before(project, is_over=case.is_over)
    page = context.new_page()
    begin(page, f"{network.url}/?project={project}&tab={'download' if case.is_over else 'train'}", is_over=case.is_over)
    with network.holding(case.number, WAYS[(PAIRS.index(case.pair) + case.number) % len(WAYS)]) as hold:
        for act in case.pair:
            ACTS[act].do(page)
            if act not in LEAVING:
                ACTS[act].change(state, page.evaluate("window.run ?? ''")[18:])
            time.sleep(PERSON)
        time.sleep(0.5)  # a request that is late by less would be none
    wanted = [state.started, state.requests, state.removed]
    until(lambda: on_disk(project), wanted, hold)
    time.sleep(SETTLED)
    until(lambda: on_disk(project), wanted, hold)
    if state.run and case.pair[1] not in LEAVING:
        until(lambda: page.locator("#status [data-run]").get_attribute("data-run")[18:], state.run, hold)
        until(lambda: page.locator("#run input").input_value().split(",")[0], state.run, hold)
    page.close()
    again = context.new_page()
    again.goto(f"{network.url}/?project={project}&tab=train")
    again.locator("html[data-filled]").wait_for(state="attached")
    for part, value in (("name", state.form["name"]), ("train-trigger", state.form["trigger"])):
        until(again.locator(f"#{part} :is(input, textarea)").first.input_value, value, hold)
    again.close()
    return hold


@pytest.mark.parametrize(
    "pair", [("start", "choose a run"), ("stop", "hold"), ("delete", "restore")], ids=" then ".join
)
def test_what_was_seen_is_what_is_done(
    project: Callable[[bool], str], network: SlowNetwork, context: BrowserContext, pair: tuple[str, str]
) -> None:
    case = Case(pair, 1)
    assert hold_one(network, context, project(case.is_over), case).held


def test_a_run_is_started_from_any_tab(shared: Server, project: Callable[[bool], str], context: BrowserContext) -> None:
    here, page = project(True), context.new_page()
    begin(page, f"{shared.url}/?project={here}&tab=download", is_over=True)
    page.locator("#start").click()
    wait(lambda: [run["name"] for run in on_disk(here)[0]] == [here])


@pytest.mark.nightly
@pytest.mark.parametrize("pair", PAIRS, ids=" then ".join)
def test_every_request_of_every_pair_about_runs(
    project: Callable[[bool], str], network: SlowNetwork, context: BrowserContext, pair: tuple[str, str]
) -> None:
    is_over = pair[0] in ENDED
    hold_each(lambda number: hold_one(network, context, project(is_over), Case(pair, number)))
