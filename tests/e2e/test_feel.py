"""How the page feels on a desk and on a phone; LIMNER_E2E_KEEP names a folder in which pictures of it are kept."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import CHECKOUT, Page, Server, Visit, copy_project, wait
from tests.e2e.test_images import choose
from tests.e2e.test_page import PHONE, TABS, advanced, finished, picture, start, tab

AXE = CHECKOUT / "tests" / "browser_code" / "node_modules" / "axe-core" / "axe.min.js"
# Findings in Gradio's own components, which the page cannot mend.
KNOWN = {
    "label-content-name-mismatch",  # the button to upload says more than its name
    "aria-prohibited-attr",  # a label on an element without a role
    "aria-allowed-attr",
    "scrollable-region-focusable",  # the closed list of a dropdown
    "nested-interactive",  # the token of an upload
}
LOOKS = {"light": {}, "dark": {"color_scheme": "dark"}}


def keep(page: Page, name: str) -> None:
    folder = os.environ.get("LIMNER_E2E_KEEP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def teach(page: Page, **settings: object) -> None:
    """Train once for all tests of this module."""
    tab(page, "Train")
    if not page.locator("#status [data-status=finished]").count():
        advanced(page, **({"training_steps": 24, "preview_every": 8, "checkpoint_every": 8} | settings))
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
            page.locator(".pictures.done img").first.wait_for(timeout=90_000)
        page.wait_for_timeout(700)
        keep(page, f"{name.lower().replace(' ', '-')}-{size}-{look}")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        report = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for violation in report["violations"]:
            violations.setdefault(violation["id"], []).extend(
                f"{name}: {node['html'][:160]}" for node in violation["nodes"]
            )
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, name
    new = {rule: where for rule, where in violations.items() if rule not in KNOWN}
    assert not new, json.dumps(new, indent=1)


def test_a_page_at_rest_draws_no_frames(shared: Server, visit: Visit) -> None:
    """Gradio counts the seconds of its own start in each frame, sixty times a second, until the page is closed."""
    page = visit(shared)

    def frames() -> int:
        before = page.evaluate("requestAnimationFrame(() => {})")
        page.wait_for_timeout(500)
        return int(page.evaluate("requestAnimationFrame(() => {})")) - int(before)

    wait(lambda: frames() == 1, seconds=10)  # the one that this asks for itself


def test_the_strength_by_mouse_keyboard_and_number(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    teach(page)
    tab(page, "Try out")
    page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
    slider = page.locator("#strength input[type=range]")
    box = slider.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.66, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2, steps=20)
    page.mouse.up()
    low = f"{float(slider.input_value()):g}"
    assert 0 < float(low) < 0.5
    by_mouse = picture(page, shared, low)
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    higher = f"{float(low) + 0.3:.2f}".rstrip("0").rstrip(".")
    by_keys = picture(page, shared, higher)
    page.locator("#strength input[type=number]").fill(low)
    page.keyboard.press("Enter")
    assert picture(page, shared, low) == by_mouse != by_keys


def test_comparisons_stream_and_are_given_up(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    teach(page)
    tab(page, "Try out")
    page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
    page.get_by_label("Grid", exact=True).check()
    wait(lambda: page.locator(".pictures.table img").count() >= 2, seconds=90)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Canceled").wait_for(timeout=30_000)
    assert page.locator(".pictures.table img").count() < 15
    page.locator("#try-advanced").get_by_text("Advanced").click()
    page.locator("#try-steps input").fill("6")
    page.get_by_label("Slider", exact=True).check()
    page.locator(".uncover img").first.wait_for(timeout=90_000)
    page.locator(".uncover input").fill("80")
    assert page.locator(".uncover").get_attribute("style") == "--cut: 80%;"
    # A picture gives its settings back.
    page.get_by_label("Single", exact=True).check()
    page.locator("#seed input").fill("5")
    page.get_by_role("button", name="Generate image").click()
    page.get_by_text("Seed 5, 6 steps").wait_for(timeout=60_000)
    with page.expect_download() as download:
        page.locator(".pictures.done figcaption a").first.click()
    page.locator("#seed input").fill("9")
    page.locator("#prompt textarea").fill("something else")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load settings from an image").click()
    chooser.value.set_files(_as_png(download.value))
    wait(lambda: page.locator("#seed input").input_value() == "5")
    assert page.locator("#prompt textarea").input_value().startswith("miraxo")


def _as_png(download: Any) -> str:  # noqa: ANN401 - a download
    path = Path(download.path()).with_name("saved.png")
    download.save_as(path)
    with Image.open(path) as image:
        assert "limner" in image.text
    return str(path)


def test_settings_are_left_as_they_were(shared: Server, visit: Visit) -> None:
    copy_project("example-character", shared.home / "datasets" / "left")
    page = visit(shared)
    choose(page, "left")
    advanced(page, training_steps=77)
    page.get_by_label("Save these settings as").fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    wait(lambda: page.locator("#settings-name :is(input, textarea)").input_value() == "")
    page.reload()
    tab(page, "Train")
    page.locator("#advanced").get_by_text("Advanced").click()
    wait(lambda: page.locator("#form-training-steps input").input_value() == "77")
    page.get_by_text("Quick look").click()
    wait(lambda: page.locator("#form-training-steps input").input_value() == "0")
    page.locator("#kept-settings input").click()
    page.get_by_role("option", name="mine").click()
    page.get_by_role("button", name="Use", exact=True).click()
    wait(lambda: page.locator("#form-training-steps input").input_value() == "77")
