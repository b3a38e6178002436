"""The page as a place to work in: what stays in sight, is found and accessible, and no setting that is lost."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from filelock import FileLock

from tests.conftest import wait
from tests.e2e.conftest import CHECKOUT, Locator, Page, Route, Server, Visit, copy_project
from tests.e2e.test_images import choose
from tests.e2e.test_page import PHONE, TABS, advanced, finished, start, tab
from tests.unit.runs.test_run import named
from trainer.runs import Run, cards, events, queue

SMALL_WINDOW = {"viewport": {"width": 1366, "height": 768}}


def is_in_sight(page: Page, what: Locator) -> bool:
    box, window = what.bounding_box(), page.viewport_size
    return box["x"] >= 0 and box["y"] >= 0 and box["y"] + box["height"] <= window["height"] + 1


# Titles of settings that lie where the bar with Start is, and whether the bar is what is seen there.
BELOW_THE_BAR = """() => {
  const bar = document.querySelector("#start-bar").getBoundingClientRect();
  return [...document.querySelectorAll("#settings [data-testid='block-info']")]
    .map((title) => title.getBoundingClientRect())
    .filter(({ height, top, bottom }) => height && top > bar.top && bottom < bar.bottom)
    .map(({ left, top, height }) => document.elementFromPoint(left + 5, top + height / 2))
    .map((seen) => Boolean(seen.closest("#start-bar")));
}"""


def test_start_is_in_sight_whatever_is_open(shared: Server, visit: Visit) -> None:
    page = visit(shared, **SMALL_WINDOW)
    tab(page, "Train")
    begin = page.get_by_role("button", name="Start training")
    for question in ("#preset", "#name", "#train-trigger", "#base", "#effort"):
        assert is_in_sight(page, page.locator(question)), question
    assert is_in_sight(page, begin)
    before = page.locator(".run-view").bounding_box()
    page.locator("#advanced").get_by_text("Advanced").click()
    page.locator("#form-seed").hover()
    assert abs(page.locator(".run-view").bounding_box()["y"] - before["y"]) < 1, "the settings open beside the run"
    page.mouse.wheel(0, 3000)
    wait(lambda: page.locator("#advanced").evaluate("drawer => drawer.scrollTop") > 500)
    assert is_in_sight(page, begin)
    assert is_in_sight(page, page.locator("#project"))
    assert is_in_sight(page, page.get_by_role("tab", name="Try out"))
    seen = list[bool]()
    for place in range(200, 700, 25):
        page.locator("#advanced").evaluate(f"drawer => drawer.scrollTo(0, {place})")
        seen += page.evaluate(BELOW_THE_BAR)
    assert set(seen) == {True}, "no title is drawn over the bar"
    page.set_viewport_size({"width": 1366, "height": 1200})
    bar = page.locator("#start-bar").bounding_box()
    assert 1150 < bar["y"] + bar["height"] <= 1200, "not over the middle of the settings, in a tall window either"


@contextmanager
def held(page: Page, field: str, number: int) -> Iterator[list[Route]]:
    """Hold back the calls of the server that have a number in a field; yields those that wait."""
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.post_data_json[field] == number:
            waiting.append(route)
        else:
            route.fallback()

    page.route("**/gradio_api/run/predict*", hold)
    yield waiting
    page.unroute("**/gradio_api/run/predict*")


def test_on_a_phone_the_bar_with_start_becomes_that_of_the_run(shared: Server, visit: Visit) -> None:
    page = visit(shared, **PHONE)
    assert all(is_in_sight(page, page.get_by_role("tab", name=name)) for name in TABS)
    advanced(page, training_steps=2000, preview_every=0)
    number = page.evaluate("window.gradio_config.components.find(({ props }) => props.elem_id === 'start').id")
    begin = page.locator("#start")
    with held(page, "trigger_id", number) as requests:
        begin.click()
        begin.get_by_text("Starting ...").wait_for()
        while not requests:
            page.wait_for_timeout(50)
        assert begin.evaluate("button => button.inert"), "a second tap starts nothing"
        requests.pop().fallback()
    bar = page.locator("#dock")
    bar.get_by_text("Training").wait_for()
    wait(lambda: not begin.is_visible())
    bar.get_by_role("button", name="Stop").click()
    page.locator("#status [data-status=stopped]").wait_for()
    begin.get_by_text("Start training").wait_for()
    assert not bar.is_visible()
    assert len([folder for folder in (shared.home / "outputs").glob("20*") if folder.is_dir()]) == 1
    assert requests == []


def test_nothing_starts_before_the_form_is_filled(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    advanced(page, training_steps=7)
    wait(lambda: "7" in kept(shared).get("settings", ""))
    calls = page.evaluate("window.gradio_config.dependencies")
    loaded = next(call["id"] for call in calls if call["targets"][0][1] == "load")
    fills = next(call["id"] for call in calls if call["trigger_after"] == loaded and call["backend_fn"])
    with held(page, "fn_index", fills) as requests:
        page.reload()
        page.locator("html[data-loaded]").wait_for(state="attached")
        while not requests:
            page.wait_for_timeout(50)
        assert not page.locator("#start").is_visible()
        requests.pop().fallback()
        page.locator("#start").wait_for()
        page.locator("#advanced").get_by_text("Advanced").click()
        assert value(page, "training-steps") == "7"
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: json.loads(kept(shared)["settings"]) == {})


def value(page: Page, setting: str) -> str:
    field = page.locator(f"#form-{setting} :is(input, textarea)").first
    return field.evaluate("field => field.type === 'checkbox' ? String(field.checked) : field.value")


def kept(server: Server) -> dict[str, str]:
    """What the page remembers of the project."""
    answers = json.loads((server.home / "outputs" / ".page.json").read_text())["answers"]
    return dict(answers.get("example-character", {}))


def test_the_settings_are_edited_as_a_text(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    advanced(page)
    page.get_by_text("The same settings as a text").click()
    text = page.locator("#settings-toml textarea")
    wait(lambda: "exposures = 340" in text.input_value())
    text.fill(text.input_value().replace("exposures = 340", "exposure = 340"))
    page.get_by_text("training.exposure is not a setting (did you mean training.exposures?)").wait_for()
    use = page.get_by_role("button", name="Fill the form from the text")
    assert not use.is_enabled()
    text.fill(text.input_value().replace("exposure = 340", "exposures = 91"))
    wait(use.is_enabled)
    use.click()
    wait(lambda: value(page, "training-exposures") == "91")
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: value(page, "training-exposures") == "340")


def test_what_is_chosen_in_a_list_is_kept(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    precision = page.locator("#form-training-precision input")
    advanced(page)
    precision.click()
    page.get_by_role("option", name="bf16").click()
    page.locator("p.changed[data-field=form-training-precision]").wait_for()
    page.reload()
    advanced(page)
    assert precision.input_value() == "bf16"
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: precision.input_value() == "auto")


def test_conflicting_settings_are_shown_with_the_conflict(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    advanced(page, training_exposures=99)
    page.locator("#form-optimizer-kind").get_by_text("Schedule-free AdamW").click()
    words = "a schedule-free optimizer needs the constant schedule"
    note = page.locator("#form-schedule-kind .conflict")
    note.get_by_text(words).wait_for()
    wait(lambda: "schedule-free" in kept(shared).get("settings", ""))
    page.reload()
    tab(page, "Train")
    page.locator("#advanced").get_by_text("Advanced").click()
    note.get_by_text(words).wait_for()
    wait(page.locator("#form-optimizer-kind").get_by_label("Schedule-free AdamW").is_checked)
    assert value(page, "training-exposures") == "99"
    note.get_by_role("button", name="Set to constant").click()
    wait(lambda: note.count() == 0)
    wait(page.locator("#form-schedule-kind").get_by_label("Constant", exact=True).is_checked)
    page.get_by_label("Save these settings as").fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    wait(lambda: page.locator("#settings-name :is(input, textarea)").input_value() == "")
    # All of them can be reset, and come back under the name they have.
    marked = page.locator("#train-form p.changed")
    wait(lambda: marked.count() == 3)
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: marked.count() == 0)
    wait(page.locator("#form-optimizer-kind").get_by_label("AdamW", exact=True).is_checked)
    wait(lambda: json.loads(kept(shared)["settings"]) == {})
    page.locator("#kept-settings input").click()
    page.get_by_role("option", name="mine").click()
    page.get_by_role("button", name="Use", exact=True).click()
    wait(lambda: value(page, "training-exposures") == "99" and marked.count() == 3)
    page.locator("#plan").get_by_text("14 images").wait_for()


@pytest.fixture
def waiting(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Run]]:
    """Three runs that wait for the device; this process has it, and their locks in the place of their workers."""
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))
    made = [named(f"2026-11-24_14050{number}_{name}") for number, name in enumerate(("rin", "fox", "cat"))]
    with ExitStack() as locks:
        for file in (cards.known()[0].lock, *(run.lock for run in made)):
            locks.enter_context(FileLock(file))
        yield made
    for run in made:
        shutil.rmtree(run.folder)


def test_waiting_runs_are_moved_by_keys_and_held(shared: Server, visit: Visit, waiting: list[Run]) -> None:
    page = visit(shared)
    tab(page, "Train")
    rows = page.locator("#queue li")

    def names() -> list[str]:
        return [text.partition(",")[0].split()[-1] for text in rows.all_inner_texts()]

    wait(lambda: names() == ["rin", "fox", "cat"])
    rows.nth(2).get_by_role("button").first.focus()
    for order in (["rin", "cat", "fox"], ["cat", "rin", "fox"]):
        page.keyboard.press("Enter")
        wait(lambda order=order: names() == order)
        wait(lambda: page.evaluate("document.activeElement.closest('li')?.innerText.includes('cat') ?? false"))
    assert [run.id[18:] for run in queue.waiting()] == ["cat", "rin", "fox"]
    rows.nth(1).get_by_role("button", name="Hold").click()
    rows.nth(1).get_by_text("On hold").wait_for()
    assert [run.id[18:] for run in queue.waiting() if run.on_hold] == ["rin"]
    rows.nth(1).get_by_role("button", name="Release").click()
    wait(lambda: not any(run.on_hold for run in queue.waiting()))
    wait(lambda: page.locator("#queue").get_by_text("On hold").count() == 0)


def test_a_button_that_changes_while_it_is_pressed_still_acts(shared: Server, visit: Visit, waiting: list[Run]) -> None:
    page, run = visit(shared), waiting[0]
    tab(page, "Train")
    page.locator(f"#status [data-run='{run.id}'][data-status=waiting]").wait_for()
    page.get_by_role("button", name="Stop and save").hover()
    page.mouse.down()
    run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
    (run.folder / "ask" / "start").unlink()  # it has its device
    page.wait_for_timeout(2500)  # the view is asked for every second
    page.mouse.up()
    wait((run.folder / "ask" / "stop").exists)
    page.locator(f"#status [data-run='{run.id}'][data-status=running]").wait_for()


AXE = CHECKOUT / "tests" / "browser_code" / "node_modules" / "axe-core" / "axe.min.js"
# Findings in Gradio's own components, which the page cannot mend.
KNOWN = {
    "label-content-name-mismatch",  # the button to upload says more than its name
    "aria-prohibited-attr",  # a label on an element without a role
    "aria-allowed-attr",
    "scrollable-region-focusable",  # the closed list of a dropdown
    "nested-interactive",  # the token of an upload
}
# Rules but those above that are broken, with the parts of the page where.
BROKEN = """known => axe.run(document, {
  resultTypes: ["violations"], rules: Object.fromEntries(known.map((rule) => [rule, { enabled: false }])),
}).then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]))"""
LOOKS = {"light": {}, "dark": {"color_scheme": "dark"}}


def teach(page: Page) -> None:
    """Train once for all tests of this module."""
    tab(page, "Train")
    if not page.locator("#status [data-status=finished]").count():
        small = {"training_steps": 6, "training_batch_size": 1, "checkpoint_every": 2}
        advanced(page, preview_every=6, preview_prompts="miraxo", **small)
        start(page)
        finished(page)


@pytest.mark.parametrize(
    ("size", "look"), [("desk", "dark"), pytest.param("phone", "light", marks=pytest.mark.nightly)]
)
def test_each_screen_is_accessible(shared: Server, visit: Visit, look: str, size: str) -> None:
    if not AXE.is_file():
        words = "axe-core is not there: npm ci --prefix tests/browser_code"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    page = visit(shared, **LOOKS[look], **(PHONE if size == "phone" else {}))
    teach(page)
    violations: dict[str, list[str]] = {}
    for name in TABS:
        tab(page, name)
        if name == "Try out" and not page.locator("#result img").count():
            page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
            page.get_by_role("button", name="Generate image").click()
            page.locator(".pictures.done img").first.wait_for()
        page.wait_for_timeout(700)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        for rule, where in page.evaluate(BROKEN, sorted(KNOWN)):
            violations.setdefault(rule, []).extend(f"{name}: {html[:160]}" for html in where)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, name
    assert not violations, json.dumps(violations, indent=1)


def test_a_page_at_rest_draws_no_frames(shared: Server, visit: Visit) -> None:
    """Gradio counts the seconds of its own start in each frame, sixty times a second, until the page is closed."""
    page = visit(shared)

    def frames() -> int:
        before = page.evaluate("requestAnimationFrame(() => {})")
        page.wait_for_timeout(500)
        return int(page.evaluate("requestAnimationFrame(() => {})")) - int(before)

    wait(lambda: frames() == 1)  # the one that this asks for itself


def test_comparisons_stream_and_are_given_up(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    teach(page)
    tab(page, "Try out")
    page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
    page.get_by_label("Grid", exact=True).check()
    wait(lambda: page.locator(".pictures.table img").count() >= 2)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Canceled").wait_for()
    assert page.locator(".pictures.table img").count() < 15
    page.locator("#try-advanced").get_by_text("Advanced").click()
    page.locator("#try-steps input").fill("6")
    page.get_by_label("Slider", exact=True).check()
    page.locator(".uncover img").first.wait_for()
    page.locator(".uncover input").fill("80")
    assert page.locator(".uncover").get_attribute("style") == "--cut: 80%;"


def test_a_start_without_a_trigger_word_asks_once(shared: Server, visit: Visit) -> None:
    project = copy_project("example-character", shared.home / "datasets" / "plain")
    for caption in project.glob("*.txt"):
        caption.write_text(caption.read_text().replace("miraxo, ", ""))
    page = visit(shared)
    choose(page, "plain")
    advanced(page, training_steps=2, training_batch_size=1, preview_every=0)
    assert page.locator("#train-trigger :is(input, textarea)").input_value() == ""
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("There is no trigger word.").wait_for()
    assert not list((shared.home / "outputs").glob("20*_plain*"))
    page.get_by_role("button", name="Train without a trigger word").click()
    page.locator("#status [data-status=finished]").wait_for()
    assert not page.get_by_role("button", name="Train without a trigger word").is_visible()
    page.get_by_role("button", name="Start training").click()  # not asked again
    wait(lambda: len(list((shared.home / "outputs").glob("20*_plain*"))) == 2)


def test_a_start_that_was_refused_can_be_made_again(shared: Server, visit: Visit) -> None:
    project = copy_project("example-character", shared.home / "datasets" / "bare")
    page = visit(shared)
    choose(page, "bare")
    tab(page, "Train")
    begin, held = page.locator("#start"), []

    def hold(route: Route) -> None:  # or the plan turns the button off once the images are gone
        if any(project.glob("*.png")):
            held.append(route)
        else:
            route.continue_()

    page.route("**/gradio_api/run/**", hold)
    begin.click()
    for image in project.glob("*.png"):
        image.unlink()
    for route in held:
        route.continue_()
    page.get_by_test_id("toast-text").filter(has_text="There are no images in this dataset.").wait_for()
    begin.get_by_text("Start training").wait_for()
    assert not begin.evaluate("button => button.inert")
