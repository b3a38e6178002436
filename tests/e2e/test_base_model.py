"""A base model of one's own in a real browser: it is named, downloaded, and brings its settings."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_hub
from tests.e2e.conftest import Page, Server, Visit, make_home, serving, wait
from tests.e2e.test_feel import keep
from tests.e2e.test_page import advanced, finished, tab
from tests.e2e.test_settings import kept, models, value
from tests.fake_hub import FakeHub

__all__ = ["models"]

BASE = "anna/base"


@pytest.fixture(scope="module")
def fake(models: Path) -> Iterator[FakeHub]:
    files = fake_hub.folder_files(models / "sd")
    large = {"unet/diffusion_pytorch_model.safetensors": files["unet/diffusion_pytorch_model.safetensors"]}
    with fake_hub.serving({BASE: files | large}) as made:
        yield made


@pytest.fixture
def hub_server(tmp_path: Path, fake: FakeHub) -> Iterator[Server]:
    home = make_home(tmp_path)
    environment = {"HF_ENDPOINT": fake.url, "HF_HUB_CACHE": str(home / "hub")}
    with serving(home, **environment) as made:
        yield made


def type_base(page: Page, text: str) -> None:
    field = page.locator("#base input")
    field.click()
    field.fill(text)
    field.press("Enter")
    page.keyboard.press("Tab")


@pytest.mark.nightly
def test_a_base_model_is_downloaded_from_the_page_and_trained(hub_server: Server, visit: Visit, fake: FakeHub) -> None:
    page = visit(hub_server)
    advanced(page, training_steps=2, preview_every=0)
    start = page.get_by_role("button", name="Start training")
    described = page.locator("#base-description")
    type_base(page, str(hub_server.home / "gone.safetensors"))
    described.get_by_text("The base model 'gone.safetensors' does not exist.").wait_for()
    assert start.is_disabled()
    keep(page, "base-gone")
    type_base(page, BASE)
    described.get_by_text("anna/base is not on this machine.").wait_for()
    assert start.is_disabled()
    assert not fake.sent  # nothing is fetched without the click

    fake.seconds_per_piece = 1.5
    page.get_by_role("button", name="Download", exact=True).click()
    described.get_by_text("Downloading:").wait_for()
    keep(page, "base-downloading")
    page.reload()  # the download goes on
    tab(page, "Train")
    described.get_by_text("Downloading:").wait_for()
    page.get_by_role("button", name="Cancel download").click()
    described.get_by_text("anna/base is not on this machine.").wait_for()
    fake.seconds_per_piece = 0
    page.get_by_role("button", name="Download", exact=True).click()
    described.get_by_text("Stable Diffusion 1.x · predicts noise").wait_for()
    wait(start.is_enabled)
    keep(page, "base-ready")
    page.locator("#advanced").get_by_text("Advanced").click()
    wait(lambda: value(page, "training-resolution") == "512", seconds=60)
    page.locator("#form-training-resolution input").fill("64")
    page.keyboard.press("Tab")
    start.click()
    finished(page, 120)
    assert json.loads(kept(hub_server)["settings"])["training"] == {"steps": 2, "resolution": 64}
