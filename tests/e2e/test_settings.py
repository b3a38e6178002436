"""The form's settings in a real browser, and nothing that was set is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import CHECKOUT, EXAMPLES, Page, Server, Visit, wait
from tests.e2e.test_feel import keep
from tests.e2e.test_page import advanced, tab

MAKE = "import sys, pathlib; from tests.tiny import make_sd, make_sdxl; " + "; ".join(
    f"make_{kind}(pathlib.Path(sys.argv[1]) / '{kind}')" for kind in ("sd", "sdxl")
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-c", MAKE, folder], cwd=CHECKOUT, check=True, capture_output=True)
    return folder


def value(page: Page, setting: str) -> str:
    field = page.locator(f"#form-{setting} :is(input, textarea)").first
    return field.evaluate("field => field.type === 'checkbox' ? String(field.checked) : field.value")


def choose_base(page: Page, name: str) -> None:
    page.locator("#base input").click()
    page.get_by_role("option", name=name).click()


def kept(server: Server) -> dict[str, str]:
    """What the page remembers of the project."""
    answers = json.loads((server.home / "outputs" / ".page.json").read_text())["answers"]
    return dict(answers["example-character"])


def test_conflicting_settings_are_shown_with_the_conflict(server: Server, visit: Visit) -> None:
    page = visit(server)
    advanced(page, training_exposures=99)
    page.locator("#form-optimizer-kind").get_by_text("Schedule-free AdamW").click()
    words = "a schedule-free optimizer needs the constant schedule"
    note = page.locator("#form-schedule-kind .conflict")
    note.get_by_text(words).wait_for()
    wait(lambda: "schedule-free" in kept(server).get("settings", ""), seconds=60)
    page.reload()
    tab(page, "Train")
    page.locator("#advanced").get_by_text("Advanced").click()
    note.get_by_text(words).wait_for()
    assert page.locator("#form-optimizer-kind").get_by_label("Schedule-free AdamW").is_checked()
    assert value(page, "training-exposures") == "99"
    note.get_by_role("button", name="Set to constant").click()
    wait(lambda: note.count() == 0, seconds=60)
    assert page.locator("#form-schedule-kind").get_by_label("Constant", exact=True).is_checked()
    # Each changed field says so, and can be reset; so can all of them.
    marked = page.locator("#train-form p.changed")
    wait(lambda: marked.count() == 3, seconds=60)
    keep(page, "changed-settings")
    page.locator("#form-training-exposures").get_by_role("button", name="Reset").click()
    wait(lambda: value(page, "training-exposures") == "340", seconds=60)
    wait(lambda: marked.count() == 2, seconds=60)
    page.get_by_role("button", name="Reset all").click()
    wait(lambda: marked.count() == 0, seconds=60)
    assert page.locator("#form-optimizer-kind").get_by_label("AdamW", exact=True).is_checked()
    wait(lambda: json.loads(kept(server)["settings"]) == {}, seconds=60)
    page.locator("#plan").get_by_text("14 images").wait_for()


def test_a_start_without_a_trigger_word_asks_once(server: Server, visit: Visit) -> None:
    project = server.home / "datasets" / "plain"
    shutil.copytree(EXAMPLES / "example-character", project, ignore=shutil.ignore_patterns(".*"))
    for caption in project.glob("*.txt"):
        caption.write_text(caption.read_text().replace("miraxo, ", ""))
    page = visit(server)
    page.locator("#project input").click()
    page.get_by_role("option", name="plain", exact=True).click()
    advanced(page, training_steps=2, preview_every=0)
    assert page.locator("#train-trigger :is(input, textarea)").input_value() == ""
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("There is no trigger word.").wait_for()
    assert not [path for path in (server.home / "outputs").iterdir() if path.is_dir() and path.name[0] != "."]
    page.get_by_role("button", name="Train without a trigger word").click()
    page.locator("#status [data-status=finished]").wait_for(timeout=120_000)
    assert not page.get_by_role("button", name="Train without a trigger word").is_visible()
    page.get_by_role("button", name="Start training").click()  # not asked again
    wait(lambda: len(list((server.home / "outputs").glob("20*_plain*"))) == 2, seconds=60)
