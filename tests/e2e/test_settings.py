"""The form's settings in a real browser, and nothing that was set is lost."""

import json

from tests.e2e.conftest import Page, Server, Visit, copy_project, wait
from tests.e2e.test_images import choose
from tests.e2e.test_page import advanced, tab


def value(page: Page, setting: str) -> str:
    field = page.locator(f"#form-{setting} :is(input, textarea)").first
    return field.evaluate("field => field.type === 'checkbox' ? String(field.checked) : field.value")


def kept(server: Server) -> dict[str, str]:
    """What the page remembers of the project."""
    answers = json.loads((server.home / "outputs" / ".page.json").read_text())["answers"]
    return dict(answers["example-character"])


def test_conflicting_settings_are_shown_with_the_conflict(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    advanced(page, training_exposures=99)
    page.locator("#form-optimizer-kind").get_by_text("Schedule-free AdamW").click()
    words = "a schedule-free optimizer needs the constant schedule"
    note = page.locator("#form-schedule-kind .conflict")
    note.get_by_text(words).wait_for()
    wait(lambda: "schedule-free" in kept(shared).get("settings", ""), seconds=60)
    page.reload()
    tab(page, "Train")
    page.locator("#advanced").get_by_text("Advanced").click()
    note.get_by_text(words).wait_for()
    wait(page.locator("#form-optimizer-kind").get_by_label("Schedule-free AdamW").is_checked)
    assert value(page, "training-exposures") == "99"
    note.get_by_role("button", name="Set to constant").click()
    wait(lambda: note.count() == 0, seconds=60)
    wait(page.locator("#form-schedule-kind").get_by_label("Constant", exact=True).is_checked)
    page.get_by_label("Save these settings as").fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    wait(lambda: page.locator("#settings-name :is(input, textarea)").input_value() == "")
    # Each changed field says so, and can be reset; so can all of them, and come back under the name they have.
    marked = page.locator("#train-form p.changed")
    wait(lambda: marked.count() == 3, seconds=60)
    page.locator("#form-training-exposures").get_by_role("button", name="Reset").click()
    wait(lambda: value(page, "training-exposures") == "340", seconds=60)
    wait(lambda: marked.count() == 2, seconds=60)
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: marked.count() == 0, seconds=60)
    wait(page.locator("#form-optimizer-kind").get_by_label("AdamW", exact=True).is_checked)
    wait(lambda: json.loads(kept(shared)["settings"]) == {}, seconds=60)
    page.locator("#kept-settings input").click()
    page.get_by_role("option", name="mine").click()
    page.get_by_role("button", name="Use", exact=True).click()
    wait(lambda: value(page, "training-exposures") == "99" and marked.count() == 3, seconds=60)
    page.locator("#plan").get_by_text("14 images").wait_for()


def test_a_start_without_a_trigger_word_asks_once(shared: Server, visit: Visit) -> None:
    project = copy_project("example-character", shared.home / "datasets" / "plain")
    for caption in project.glob("*.txt"):
        caption.write_text(caption.read_text().replace("miraxo, ", ""))
    page = visit(shared)
    choose(page, "plain")
    advanced(page, training_steps=2, preview_every=0)
    assert page.locator("#train-trigger :is(input, textarea)").input_value() == ""
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("There is no trigger word.").wait_for()
    assert not [path for path in (shared.home / "outputs").iterdir() if path.is_dir() and path.name[0] != "."]
    page.get_by_role("button", name="Train without a trigger word").click()
    page.locator("#status [data-status=finished]").wait_for(timeout=120_000)
    assert not page.get_by_role("button", name="Train without a trigger word").is_visible()
    page.get_by_role("button", name="Start training").click()  # not asked again
    wait(lambda: len(list((shared.home / "outputs").glob("20*_plain*"))) == 2, seconds=60)
