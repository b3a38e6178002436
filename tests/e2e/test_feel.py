"""How the page feels on a desk and on a phone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import CHECKOUT, Page, Server, Visit, wait
from tests.e2e.test_page import PHONE, TABS, advanced, finished, start, tab

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
