"""Acts on the page while a request is held back: what was seen when something was clicked is what is changed.

The pairs come from a table of acts. Each act says what it changes of the project that the page shows when it is done;
whatever request is late, and whatever else is done meanwhile, the disk must then hold exactly that, and the page show
what is on the disk.
"""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

import pytest
from playwright.sync_api import Error

from tests.conftest import HANG, wait
from tests.e2e.conftest import Browser, BrowserContext, Page, Route, Server, copy_project
from tests.e2e.slow_network import Hold, SlowNetwork, Way
from tests.e2e.test_images import fill, png
from trainer import config, runs, storage

TYPED = "04.png"  # the image whose caption is typed, which no act removes
BINNED = {"03": "20260101-000000-000000", "05": "20260102-000000-000000"}  # two, as *Restore* may be clicked twice
NUMBERS = count()  # each case has projects of its own: the server may still be at work for the one before
PERSON = 0.2  # seconds between two clicks of somebody who is quick
SETTLED = 0.4  # seconds in which nothing may change any more


@dataclass
class Project:
    """A project as it is on the disk."""

    captions: dict[str, str]
    trigger: str = ""
    title: str = ""
    preset: str = ""
    settings: str = "{}"
    removed: list[list[str]] = field(default_factory=list)  # what was removed at once, the latest at the end


State = dict[str, Project]


def state(home: Path) -> State:
    """Read what is on the disk; of removed images only what can be seen in the folders is compared."""
    file = home / "outputs" / ".page.json"
    answers = json.loads(file.read_text()).get("answers", {}) if file.exists() else {}
    projects = {}
    for folder in sorted((home / "datasets").glob("[!.]*")):
        captions = {}
        for image in sorted(folder.glob("*.png")):
            text = image.with_suffix(".txt")
            captions[image.name] = text.read_text().strip() if text.exists() else ""
        known = answers.get(folder.name, {})
        answers_of = {name: known[name] for name in ("trigger", "title", "preset", "settings") if name in known}
        projects[folder.name] = Project(captions, **answers_of)
    return projects


@dataclass(frozen=True)
class Act:
    """Something that a person does on the page, and what it changes of the project that is shown."""

    do: Callable[[Page], None]
    change: Callable[[State, str], str]  # returns the project that the page shows then


def stay(_state: State, project: str) -> str:
    return project


def on(change: Callable[[Project], None]) -> Callable[[State, str], str]:
    def apply(state: State, project: str) -> str:
        change(state[project])
        return project

    return apply


def visible(project: Project) -> list[str]:
    return sorted(project.captions)


def remove(*places: int) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        names = [visible(project)[place] for place in places]
        project.removed.append([f"{name}\n{project.captions.pop(name)}" for name in names])

    return change


def restore(project: Project) -> None:
    if project.removed:
        project.captions |= dict(entry.split("\n") for entry in project.removed.pop())


def press(name: str) -> Callable[[Page], None]:
    return lambda page: page.get_by_role("button", name=name).click()


def type_trigger(word: str) -> Callable[[Page], None]:
    return lambda page: fill(page, "trigger", word)


def becomes(field: str, value: str) -> Callable[[State, str], str]:
    return on(lambda project: setattr(project, field, value))


def remove_two(page: Page) -> None:
    for place in (0, 1):
        page.locator(".card .pick").nth(place).check()
    page.locator("#selection").get_by_role("button", name="Remove").click()


def type_caption(page: Page) -> None:
    page.locator(f".card textarea[data-name='{TYPED}']").fill("typed late")


def upload(page: Page) -> None:
    page.locator("#upload input[type=file]").set_input_files(
        [{"name": "new.png", "mimeType": "image/png", "buffer": png(5)}]
    )


def caption_changed(project: Project) -> None:
    project.captions[TYPED] = "typed late"


def prefixed(project: Project) -> None:
    for name, text in project.captions.items():
        if not text.startswith(project.trigger):
            project.captions[name] = f"{project.trigger}, {text}".rstrip(", ")


def choose_other(page: Page) -> None:
    page.locator("#project input").click()
    page.get_by_role("option", name="there").click()


def there(state: State, _project: str) -> str:
    return next(name for name in state if name.startswith("there"))


def show_tab(name: str) -> Callable[[Page], None]:
    return lambda page: page.get_by_role("tab", name=name).click()


def rename(page: Page) -> None:
    page.get_by_role("button", name="Manage").click()
    page.get_by_label("Name of this project").fill("A new name")
    page.get_by_role("button", name="Rename").click()


def edit_setting(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#advanced").get_by_text("Advanced").click()
    fill(page, "form-training-steps", "7")


def choose_preset(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#preset").get_by_text("Style").click()


def made_beside(place: str) -> str:
    """Return a name that no project had before, as the server numbers one that had: by a project's or an address."""
    return "made" + re.findall(r"here(\d+)", place)[-1]


def create(page: Page) -> None:
    page.get_by_role("button", name="New project").click()
    page.get_by_label("Name of the new project").fill(made_beside(page.url))
    page.get_by_role("button", name="Create", exact=True).click()


def created(state: State, project: str) -> str:
    name = made_beside(project)
    state[name] = Project({}, title=name)
    return name


# Those that change something, of which each request is held back, and what is done meanwhile.
CHANGES = {
    "remove": Act(lambda page: page.locator(".card .remove").first.click(), on(remove(0))),
    "remove two": Act(remove_two, on(remove(0, 1))),
    "restore": Act(press("Restore what was removed"), on(restore)),
    "type a caption": Act(type_caption, on(caption_changed)),
    "type the trigger": Act(type_trigger("zorblax"), becomes("trigger", "zorblax")),
    "add the trigger to all": Act(press("Add to the front of every caption"), on(prefixed)),
    "upload": Act(upload, on(lambda project: project.captions.update({"new.png": ""}))),
    "rename": Act(rename, becomes("title", "A new name")),
    "edit a setting": Act(edit_setting, becomes("settings", json.dumps({"training": {"steps": 7}}))),
    "choose a preset": Act(choose_preset, becomes("preset", "style")),
}
MEANWHILE = {
    "choose another project": Act(choose_other, there),
    "create a project": Act(create, created),
    "remove": CHANGES["remove"],
    "type a caption": CHANGES["type a caption"],
    "type another trigger": Act(type_trigger("other"), becomes("trigger", "other")),
    "restore": CHANGES["restore"],
    "choose an order": Act(lambda page: page.get_by_label("Order of the images").select_option("added"), stay),
    "show the Train tab": Act(show_tab("Train"), stay),
    "reload": Act(lambda page: page.reload(), stay),
    "go back": Act(lambda page: page.evaluate("history.back()"), there),
    "close the page": Act(lambda page: page.close(run_before_unload=True), lambda _state, _project: ""),
}
# A change of all captions comes after those that were typed before it, and is not made of those typed after it.
APART = {("add the trigger to all", "type another trigger"), ("restore", "remove")}
ON_TRAIN = ("edit a setting", "choose a preset")  # another tab, from which *back* leads to the first one
APART |= set(product(ON_TRAIN, ("remove", "restore", "type a caption", "type another trigger", "choose an order")))
DRAWN_WHEN_DONE = ("upload", "restore", "add the trigger to all", "rename")  # not at the click
PAIRS = [pair for pair in product(CHANGES, MEANWHILE) if pair not in APART]
IN_CI = [*product(CHANGES, ["choose another project"]), *product(("type a caption", "type the trigger"), ["reload"])]
IN_CI.append(("remove", "restore"))


def begin(server: Server) -> State:
    """Two projects, named like here1 and there1, in which two were removed before; returns what is on the disk."""
    home, number = server.home, next(NUMBERS)
    (home / "datasets").rename(home / f"datasets before {number}")  # in one act, as a thumbnail may still be written
    names = (f"here{number}", f"there{number}")
    for name in names:
        folder = copy_project("example-character", home / "datasets" / name, "0[6-9].*", "1*")
        for image, folder_of_image in BINNED.items():
            binned = folder / storage.BIN / folder_of_image
            binned.mkdir(parents=True)
            for file in folder.glob(f"{image}.*"):
                file.rename(binned / file.name)
        (folder / TYPED).with_suffix(".txt").write_text("a person, surprised")  # without the trigger
    typed = [{"project": name, "name": "trigger", "value": "miraxo"} for name in names]
    urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/typed", json.dumps({"fields": typed}).encode())
    ).close()
    now = state(home)
    for image, folder_of_image in BINNED.items():
        caption = (folder / storage.BIN / folder_of_image / f"{image}.txt").read_text().strip()
        for project in now.values():
            project.removed.append([f"{image}.png\n{caption}"])
    return now


def shown(page: Page) -> dict[str, str]:
    script = "[...document.querySelectorAll('#captions textarea')].map((area) => [area.dataset.name, area.value])"
    return dict(page.evaluate(script))


def without_bin(state: State) -> State:
    return {name: replace(project, removed=[]) for name, project in state.items()}


@dataclass(frozen=True)
class Case:
    """The request with this number is held back after the first act, while the other is done."""

    first: str
    meanwhile: str
    number: int
    way: Way


def hold_one(network: SlowNetwork, server: Server, context: BrowserContext, case: Case) -> Hold:
    """Do both acts, and compare what is on the disk and on the page; returns what was held back."""
    network.settle()  # what arrives late belongs to the case before
    expected = begin(server)
    here, other = expected
    page = context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.on("dialog", lambda dialog: dialog.accept())  # whether to leave the page
    project = here
    for seen in (other, here) if case.meanwhile == "go back" else (here,):
        page.goto(f"{network.url}/?project={seen}")
        page.locator(f".captions[data-project='{seen}'] .card").first.wait_for()
    with network.holding(case.number, case.way) as hold:
        for act in (CHANGES[case.first], MEANWHILE[case.meanwhile]):
            act.do(page)
            if act is not MEANWHILE["go back"] or case.first not in ON_TRAIN:
                project = act.change(expected, project)
            if act is CHANGES[case.first] and case.first in DRAWN_WHEN_DONE:
                wait(lambda: hold.count)  # on a busy machine it takes longer to leave
            time.sleep(PERSON)
        time.sleep(0.5)  # a request that is late by less would be none
    wanted = without_bin(expected)
    until(lambda: without_bin(state(server.home)), wanted, hold)
    time.sleep(SETTLED)
    until(lambda: without_bin(state(server.home)), wanted, hold)
    left_early = case.first in DRAWN_WHEN_DONE and case.meanwhile == "reload"
    if project:  # else it is closed, or will be in a moment
        page.wait_for_function("name => new URL(location.href).searchParams.get('project') === name", arg=project)
        if case.first == "upload" or left_early:
            page.reload()  # it may have been done after this page was drawn
        until(lambda: shown(page), expected[project].captions, hold)
        until(page.locator("#trigger :is(input, textarea)").first.input_value, expected[project].trigger, hold)
    page.close()
    return hold


def until(read: Callable[[], object], wanted: object, hold: Hold) -> None:
    """Wait until something is as it should be; says what it is instead, and which request was held back."""
    end = time.monotonic() + HANG
    while (actual := read()) != wanted:
        if time.monotonic() > end:
            pytest.fail(f"{actual}\ninstead of\n{wanted}\nafter {hold.held or 'nothing'} was held back")
        time.sleep(0.1)


WAYS: tuple[Way, ...] = ("there", "back")


@pytest.fixture
def network(shared: Server) -> Iterator[SlowNetwork]:
    with closing(SlowNetwork(shared.port)) as made:
        yield made


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    yield made
    with suppress(Error):  # its last page may be closing
        made.close()


@pytest.mark.parametrize(("first", "meanwhile"), IN_CI)
def test_what_was_seen_is_what_is_changed(
    shared: Server, network: SlowNetwork, context: BrowserContext, first: str, meanwhile: str
) -> None:
    assert hold_one(network, shared, context, Case(first, meanwhile, 1, "there")).held


@pytest.mark.nightly
@pytest.mark.parametrize(("first", "meanwhile"), PAIRS)
def test_every_request_of_every_pair(
    shared: Server, network: SlowNetwork, context: BrowserContext, first: str, meanwhile: str
) -> None:
    """Each request is late on its way there or on the way back, in turn: over the pairs of an act, in both ways."""
    turn = PAIRS.index((first, meanwhile))

    def hold(number: int) -> Hold:
        way = WAYS[(turn + number) % len(WAYS)]
        return hold_one(network, shared, context, Case(first, meanwhile, number, way))

    hold_each(hold)


def hold_each(hold: Callable[[int], Hold]) -> None:
    """Hold back each request in turn, by its number; how many there are shows only meanwhile."""
    number = requests = 1
    while number <= requests:
        requests = max(requests, hold(number).count)
        number += 1


def test_an_act_at_the_end_of_another(shared: Server, network: SlowNetwork, context: BrowserContext) -> None:
    """Answers arrive, refusals too, although the browser learns late that a stream of earlier ones has ended."""
    here, page = next(iter(begin(shared))), context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.goto(f"{network.url}/?project={here}")
    page.locator(".captions .card").first.wait_for()
    with network.ending_late():
        rename(page)
        page.locator("#rename-project").wait_for(state="hidden")
        page.get_by_role("button", name="New project").click()
        with page.expect_response(lambda answer: answer.status >= 400) as refused:
            page.get_by_role("button", name="Create", exact=True).click()
        page.get_by_text("The project has no name yet.").wait_for()
        assert refused.value.status == 422
        page.get_by_label("Name of the new project").fill("made")
        page.get_by_role("button", name="Create", exact=True).click()
        page.wait_for_function("new URL(location.href).searchParams.get('project') === 'made'")


def test_restore_waits_for_the_run_that_was_just_deleted(shared: Server, context: BrowserContext) -> None:
    here, page = next(iter(begin(shared))), context.new_page()
    page.set_default_timeout(HANG * 1000)
    names = ["2026-01-01_000000_first", "2026-01-01_000001_last"]
    last = names[-1]
    for name in names:
        runs.create(config.build({"name": "mira", "dataset": here}), shared.home / "outputs" / name)
    page.goto(f"{shared.url}/?project={here}&tab=download")
    late: list[Route] = []

    def hold_last(route: Route) -> None:
        if f'"run":"{last}","file"' in (route.request.post_data or ""):
            late.append(route)
        else:
            route.fallback()

    page.route("**/gradio_api/run/predict*", hold_last)
    for name in names:
        row = page.locator(f".run-row[data-run='{name}']")
        row.locator(".more summary").click()
        row.get_by_role("button", name="Delete").click()
        wait(lambda: late or page.locator("#restore-run").is_visible())
    wait(lambda: late or page.wait_for_timeout(50))  # a route is taken only while the browser is waited for
    page.locator("#restore-run").click()
    page.wait_for_timeout(1000 * PERSON)
    late.pop().fallback()
    wait(lambda: [folder.name for folder in (shared.home / "outputs").glob("2026-01-01*")] == [last])
    page.locator(f".run-row[data-run='{last}']:not(.leaving)").wait_for()


def test_restore_waits_for_the_project_that_was_just_deleted(
    shared: Server, network: SlowNetwork, context: BrowserContext
) -> None:
    here, there = begin(shared)
    storage.move_to_bin(shared.home / "datasets" / there, shared.home / "datasets")
    page = context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.goto(f"{network.url}/?project={here}")
    page.locator(".captions .card").first.wait_for()
    page.get_by_role("button", name="Manage").click()
    with network.holding(1, "there", f'"data":["{here}"]') as hold:  # and not what the page asks for meanwhile
        page.locator("#delete-project").click()
        page.locator("dialog.ask[open] .yes").click()
        wait(lambda: hold.held)
        page.locator("#restore-project").click()
        time.sleep(PERSON)
        assert not (shared.home / "datasets" / there).exists()
    network.settle()
    assert not (shared.home / "datasets" / there).exists(), "it was not the one deleted last"


def test_an_answer_changes_no_field_that_was_edited_after_its_request(
    shared: Server, network: SlowNetwork, context: BrowserContext
) -> None:
    here, page = next(iter(begin(shared))), context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.goto(f"{network.url}/?project={here}")
    page.locator(".captions .card").first.wait_for()
    page.locator(".overview .tags summary").click()
    page.locator("#bulk").get_by_text("Edit many captions").click()
    chip = page.locator(".chip").nth(1)
    type_late(page, network, chip.click, "find", "typed meanwhile")
    page.get_by_role("tab", name="Train").click()
    page.locator("html[data-filled]").wait_for(state="attached")
    page.locator("#advanced").get_by_text("Advanced").click()
    fill(page, "settings-name", "mine")
    type_late(page, network, page.locator("#keep-settings").click, "settings-name", "another")
    type_late(page, network, page.get_by_label("Quick").check, "form-training-exposures", "123")


def type_late(page: Page, network: SlowNetwork, act: Callable[[], None], field: str, text: str) -> None:
    """Type in a field while the answer to an act, which fills that field, is held back."""
    network.settle()
    with network.holding(1, "back") as hold:
        act()
        wait(lambda: hold.held)
        fill(page, field, text)
    network.settle()
    time.sleep(SETTLED)
    assert page.locator(f"#{field} :is(input, textarea)").first.input_value() == text, hold.held
