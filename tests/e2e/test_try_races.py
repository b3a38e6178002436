"""Acts in Try out while a request is held back: the image on the page is of what was chosen at the click.

As in `test_races`, the pairs come from a table of acts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import HANG
from tests.e2e.conftest import BrowserContext, Page, Server, copy_project
from tests.e2e.slow_network import Hold, SlowNetwork, Way
from tests.e2e.test_images import fill
from tests.e2e.test_races import PERSON, SETTLED, WAYS, choose_other, context, hold_each, network, show_tab, until
from tests.e2e.test_run_races import press
from trainer import config, paths, runs
from trainer.runs import Run
from trainer.train import train
from ui.tabs import sample_images

__all__ = ["context", "network"]

STEPS = 40  # of an image: it takes a second or two, so that there is something to cancel
FIELDS = ("adapter", "prompt")
NOTHING = Hold(0, "back", "")
ANY = None  # an image that may or may not have been canceled


@dataclass(frozen=True)
class State:
    """Values of the form, and those that the image on the page was made of; `ANY` if that is open."""

    adapter: str
    prompt: str
    strength: float = 1.0
    image: tuple[str, str, float] | None = ("", "", 0.0)
    is_typed: bool = False  # the prompt, which another adapter then leaves alone

    def generated(self) -> "State":
        return replace(self, image=(self.adapter, self.prompt, self.strength))


@dataclass(frozen=True)
class Act:
    """Something that a person does in Try out, and what it changes."""

    do: Callable[[Page], None]
    change: Callable[[State], State]


def move(page: Page) -> None:
    page.locator("#strength input[type=number]").fill("0.5")
    page.locator("#strength input[type=number]").press("Tab")


def choose_adapter(page: Page) -> None:
    page.locator("#adapter input").click()
    page.get_by_role("option", name="Finished: older").click()


def chosen(state: State) -> State:
    prompt = state.prompt if state.is_typed else WORDS["older"]
    return replace(state, adapter="older", prompt=prompt)


WORDS = {"older": "zorblax", "newer": "miraxo", "elsewhere": "quibble"}  # of the runs, for their prompts
ACTS = {
    "generate": Act(press("#make"), State.generated),
    "move the strength": Act(move, lambda state: replace(state, strength=0.5).generated()),
    "choose an adapter": Act(choose_adapter, chosen),
    "type a prompt": Act(
        lambda page: fill(page, "prompt", "typed"), lambda state: replace(state, prompt="typed", is_typed=True)
    ),
    "cancel": Act(press("#cancel"), lambda state: replace(state, image=ANY)),
}


def reloaded(state: State) -> State:
    """Return what a page shows that was reloaded: it was opened again, but for what was typed."""
    return replace(OPENED, prompt=state.prompt, is_typed=True) if state.is_typed else OPENED


OPENED = State("newer", WORDS["newer"])
LEAVING = {
    "choose another project": Act(choose_other, lambda _state: State("elsewhere", WORDS["elsewhere"])),
    "reload": Act(lambda page: page.reload(), reloaded),
    "show another tab": Act(show_tab("Images"), lambda state: state),
}
PAIRS = [
    (first, second)
    for first, second in product(ACTS, (*ACTS, *LEAVING))
    if (first != second or first == "generate") and (second != "cancel" or first in ("generate", "move the strength"))
]


@pytest.fixture(scope="module")
def trained(shared: Server) -> None:
    """Two adapters of one project, and one of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(shared.home))
        for project in ("here", "there"):
            copy_project("example-character", shared.home / "datasets" / project)
        for second, (name, word) in enumerate(WORDS.items()):
            project = "there" if name == "elsewhere" else "here"
            of_run = {"dataset": project, "name": name, "preview": {"every": 0, "prompts": [word]}}
            made = runs.create(config.build({**of_run, "training": {"steps": 1}}))
            run = Run(made.folder.rename(made.folder.with_name(f"2026-01-01_00000{second}_{name}")))
            train(run.config(), run)


@pytest.fixture
def adapters(shared: Server, trained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))


def on_page(page: Page) -> State:
    """Read the form, and what the image was made of from its file."""
    adapter, prompt = (page.locator(f"#{part} :is(input, textarea)").first.input_value() for part in FIELDS)
    strength = float(page.locator("#strength input[type=number]").input_value())
    state = State(adapter.removeprefix("Finished: ").split(",")[0], prompt, strength)
    images = page.locator("#result .done a[data-caption]")
    if images.count():
        made = sample_images.settings_of(paths.sample_images() / Path(images.get_attribute("href")).name)
        [(file, strength)] = made["adapters"]
        return replace(state, image=(Path(file).stem, made["prompt"], strength))
    return state


def open_tab(page: Page) -> None:
    page.locator("html[data-filled]").wait_for(state="attached")
    show_tab("Try out")(page)
    page.locator("#make").wait_for()


def opened(network: SlowNetwork, context: BrowserContext) -> Page:
    network.settle()  # what arrives late belongs to the case before
    for image in paths.sample_images().glob("*.png"):
        image.unlink()  # else there is nothing to generate
    page = context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.goto(f"{network.url}/?project=here")
    open_tab(page)
    until(lambda: on_page(page), OPENED, NOTHING)
    page.locator("#try-advanced").get_by_text("Advanced").click()
    fill(page, "try-steps", str(STEPS))
    return page


def generate(page: Page) -> None:
    """Click *Generate image*, and wait until it can be canceled."""
    page.locator("#make").click()
    page.locator("#cancel").wait_for()


def hold_one(network: SlowNetwork, context: BrowserContext, pair: tuple[str, str], number: int) -> Hold:
    """Do both acts with a request held back, the one with this number, and compare what is on the page."""
    page, expected = opened(network, context), OPENED
    if pair[0] == "cancel":
        generate(page)
    with network.holding(number, WAYS[(PAIRS.index(pair) + number) % len(WAYS)]) as hold:
        for name in pair:
            act = {**ACTS, **LEAVING}[name]
            act.do(page)
            expected = act.change(expected)
            time.sleep(PERSON)
        time.sleep(0.5)  # a request that is late by less would be none
    if pair[1] in LEAVING:
        page.wait_for_url(f"**project={'there' if expected.adapter == 'elsewhere' else 'here'}*")
        open_tab(page)

    def read() -> State:
        state = on_page(page)
        image = ANY if expected.image is ANY else state.image
        return replace(state, image=image, is_typed=expected.is_typed)

    until(read, expected, hold)
    time.sleep(SETTLED)
    until(read, expected, hold)
    page.close()
    return hold


@pytest.mark.parametrize("pair", [("generate", "move the strength"), ("cancel", "generate")], ids=" then ".join)
@pytest.mark.usefixtures("adapters")
def test_the_image_is_of_what_was_seen(network: SlowNetwork, context: BrowserContext, pair: tuple[str, str]) -> None:
    assert hold_one(network, context, pair, 1).held


@pytest.mark.usefixtures("adapters")
def test_a_click_is_answered_before_the_server_knows(network: SlowNetwork, context: BrowserContext) -> None:
    """The image is waited for, and can be canceled, from the click on."""
    page = opened(network, context)
    busy = page.locator("#result[aria-busy=true]")
    with network.holding(1, "there") as hold:
        page.locator("#make").click()
        busy.wait_for(state="attached", timeout=HANG * 500)
        page.locator("#cancel").click(timeout=HANG * 500)
    page.locator("#result").get_by_text("Canceled").wait_for()
    page.locator("#cancel").wait_for(state="hidden")
    assert "/queue/join" in hold.held
    assert busy.count() == 0
    fill(page, "prompt", "")
    page.locator("#make").click()
    page.get_by_text("There is no prompt yet.").wait_for()
    page.locator("#cancel").wait_for(state="hidden")
    assert busy.count() == 0
    fill(page, "prompt", WORDS["newer"])
    page.locator("#make").click()
    until(lambda: on_page(page), OPENED.generated(), hold)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("adapters")
def test_an_image_has_the_prompt_of_its_adapter(network: SlowNetwork, context: BrowserContext, way: Way) -> None:
    """The adapter is chosen and used before its prompt has arrived in the form."""
    page = opened(network, context)
    generated = chosen(OPENED).generated()
    with network.holding(None, way, '"here"') as hold:  # those that name the project
        choose_adapter(page)
        page.locator("#make").click()
        until(lambda: on_page(page).image, generated.image, hold)
    assert hold.held
    until(lambda: on_page(page), generated, hold)


@pytest.mark.usefixtures("adapters")
def test_a_late_cancel_leaves_the_next_image_alone(network: SlowNetwork, context: BrowserContext) -> None:
    page = opened(network, context)
    generate(page)
    with network.holding(1, "there") as hold:
        page.locator("#cancel").click()
        until(lambda: on_page(page), OPENED.generated(), hold)
        move(page)
        page.locator("#cancel").wait_for()  # for the next image
    moved = ACTS["move the strength"].change(OPENED)
    until(lambda: on_page(page), moved, hold)


@pytest.mark.nightly
@pytest.mark.parametrize("pair", PAIRS, ids=" then ".join)
@pytest.mark.usefixtures("adapters")
def test_every_request_of_every_pair_in_try_out(
    network: SlowNetwork, context: BrowserContext, pair: tuple[str, str]
) -> None:
    hold_each(partial(hold_one, network, context, pair))
