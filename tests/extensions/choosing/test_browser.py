"""From a run to the file of its best checkpoint and strength, by keyboard alone once it has begun."""

import pytest

from tests.e2e.conftest import Server, Visit, browser, copy_project, refused, shared, visit
from trainer import config, paths, runs
from trainer.adapter_files import safetensors_reader
from trainer.train import train

__all__ = ["browser", "refused", "shared", "visit"]
pytestmark = [pytest.mark.browser, pytest.mark.nightly]


def test_choices_lead_to_a_file(shared: Server, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))
    copy_project("example-character", shared.home / "datasets" / "mira")
    settings = {"dataset": "mira", "name": "mira", "preview": {"every": 0}}
    run = runs.create(config.build({**settings, "checkpoint": {"every": 1}, "training": {"steps": 2}}))
    train(run.config(), run)
    page = visit(shared)
    page.goto(f"{shared.url}/?project=mira&tab=try")
    page.locator("#choosing").get_by_text("Choose by eye").click()
    page.locator("#choose-start").click()
    page.locator("[data-choice]:not([data-choice=''])").wait_for()
    page.locator("#choose-left").focus()
    made = 0
    while not page.locator("#choose-save").is_visible() and made < 12:
        page.keyboard.press("Enter")
        made += 1
        chosen = page.locator(f"[data-choice$='-{made}'], #choose-save >> visible=true")
        chosen.first.wait_for()
    assert 4 <= made < 12
    page.locator("#choose-save").click()
    page.locator("#choose-result a").wait_for()
    (file,) = paths.adapters().glob("mira-step*.safetensors")
    strength = safetensors_reader.read(file).metadata["modelspec.lora_default_weight"]
    assert f"strength {strength}." in page.locator("#choose-result").inner_text()
