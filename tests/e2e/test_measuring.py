"""Checkpoints measured in a browser: started, stopped, gone on with, and shown as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Server, Visit, wait
from tests.e2e.test_feel import AXE, KNOWN, teach
from tests.e2e.test_page import tab

pytestmark = pytest.mark.nightly

if TYPE_CHECKING:
    from playwright.sync_api import Page


def images(server: Server) -> int:
    return len(list(server.home.glob("outputs/*/measured/images/*.png")))


def panel(page: Page) -> None:
    tab(page, "Try out")
    page.locator("#measure button").first.click()
    page.locator("#measure-images input").fill("4")
    page.locator("#measure-images input").blur()


def test_checkpoints_are_measured_stopped_and_gone_on_with(server: Server, visit: Visit) -> None:
    page = visit(server)
    teach(page, training_steps=4, preview_every=0, checkpoint_every=2)
    panel(page)
    page.locator("#measure-start:not([disabled])").click()
    page.locator("#measured [role=progressbar]").wait_for()
    wait(lambda: images(server) >= 2, seconds=90)
    page.locator("#measure-stop").click()
    page.get_by_text("Measuring was stopped.").wait_for(timeout=60_000)
    done = images(server)
    assert 2 <= done < 24

    again = visit(server)  # the page was closed meanwhile
    panel(again)
    again.get_by_text("Measuring was stopped.").wait_for()
    again.locator("#measure-start").click()
    table = again.locator("#measured table.figures")
    table.wait_for(timeout=150_000)
    assert images(server) == 24, "two checkpoints and the base model, four images with the trigger and four without"
    assert table.locator("tbody th").all_inner_texts() == ["Base model", "step 2", "step 4"]
    assert table.locator("thead th").first.inner_text() == "Checkpoint"
    again.locator("#measure-stop").wait_for(state="hidden")
    if AXE.is_file():  # which other tests demand
        again.evaluate(AXE.read_text(encoding="utf-8"))
        report = again.evaluate("axe.run('#measure', {resultTypes: ['violations']})")
        assert {violation["id"] for violation in report["violations"]} <= set(KNOWN), report["violations"]
