"""The form's settings in a real browser, on a machine that is busy with other things: nothing that was set is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import CHECKOUT, EXAMPLES, Server, Visit, wait
from tests.e2e.test_feel import keep
from tests.e2e.test_page import advanced, tab

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

MAKE = "import sys, pathlib; from tests.tiny import make_sd, make_sdxl; " + "; ".join(
    f"make_{kind}(pathlib.Path(sys.argv[1]) / '{kind}')" for kind in ("sd", "sdxl")
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-c", MAKE, folder], cwd=CHECKOUT, check=True, capture_output=True)
    return folder


@pytest.fixture(params=["idle", "busy"])
def busy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two loops that take both cores, or none."""
    count = 2 if request.param == "busy" else 0
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


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


@pytest.mark.nightly
def test_a_click_on_a_base_brings_its_settings_and_keeps_ones_own(
    server: Server, visit: Visit, models: Path, busy: None
) -> None:
    shutil.copytree(models, server.home / "models")
    page = visit(server)
    advanced(page, training_steps=321)
    for name, resolution, rate, batch in (
        ("sdxl, Stable Diffusion XL", "1024", "0.0002", "2"),
        ("sd, Stable Diffusion 1.x", "512", "0.0003", "4"),
        ("Micro, built in", "128", "0.004", "8"),
        ("sdxl, Stable Diffusion XL", "1024", "0.0002", "2"),
    ):
        choose_base(page, name)
        wait(lambda resolution=resolution: value(page, "training-resolution") == resolution, seconds=60)
        page.wait_for_timeout(1500)  # whatever else was sent at the click has been answered by then
        assert value(page, "training-resolution") == resolution
        assert value(page, "optimizer-learning-rate-adamw") == rate
        assert value(page, "training-batch-size") == batch
        assert value(page, "training-steps") == "321"
        assert json.loads(kept(server)["settings"]) == {"training": {"steps": 321}}
    page.get_by_text("The text encoder is trained too: it takes about 1.5 GB more memory").wait_for()
    page.get_by_label("Train the text encoder").uncheck()
    wait(lambda: "text encoder" not in page.locator("#plan").inner_text(), seconds=60)
    wait(lambda: json.loads(kept(server)["settings"])["training"] == {"steps": 321, "text_encoder": False}, seconds=60)
    page.reload()
    page.get_by_role("tab", name="Train").click()
    page.locator("#advanced").get_by_text("Advanced").click()
    wait(lambda: value(page, "training-resolution") == "1024", seconds=60)
    assert value(page, "training-steps") == "321"
    assert not page.get_by_label("Train the text encoder").is_checked()


def test_settings_that_conflict_are_shown_again_with_the_conflict(server: Server, visit: Visit, busy: None) -> None:
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


def test_a_conflict_stays_when_the_tab_was_opened_before_the_settings_came(server: Server, visit: Visit) -> None:
    kept_settings = {"optimizer": {"kind": "schedule-free"}}
    (server.home / "outputs" / ".page.json").write_text(
        json.dumps({"answers": {"example-character": {"settings": json.dumps(kept_settings)}}})
    )

    def is_unfilled(route: Route) -> bool:
        """The plan of the form as it was drawn, without a project."""
        data = route.request.post_data_json["data"]
        return len(data) > 5 and data[0] is None

    page = visit(server)
    asked: list[Route] = []
    late: list[Route] = []

    def hold(route: Route) -> None:
        if late:
            route.fallback()
        else:
            (late if is_unfilled(route) else asked).append(route)

    page.route("**/queue/join**", hold)
    page.reload()
    tab(page, "Train")
    wait(lambda: late or page.wait_for_timeout(100))
    for route in asked:
        route.fallback()
    page.locator("#advanced").get_by_text("Advanced").click()
    conflict = page.locator("#form-schedule-kind .conflict")
    conflict.wait_for()
    late[0].fallback()
    page.wait_for_timeout(3000)
    assert conflict.is_visible()
    assert "These settings are not valid" in page.locator("#plan").inner_text()


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
