"""Adapter files in a real browser: dropped, looked into, and painted with, several at once."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import CHECKOUT
from tests.e2e.conftest import Page, Server, Visit, wait
from tests.e2e.test_page import cards, new_project, picture, tab, upload
from tests.unit.adapter_files.test_compatibility import good, metadata
from trainer.adapter_files import reader, writer
from trainer.data import dataset

MADE_BEFORE = CHECKOUT / "tests" / "integration" / "homes" / "0.1.0" / "outputs" / "finished"


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    """An adapter for the built-in base, as if made elsewhere."""
    tensors = {
        key: tensor
        if key.endswith("alpha")
        else 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(n))
        for n, (key, tensor) in enumerate(good("sd15", "micro").items())
    }
    modules = reader.of_tensors(tensors, "fox").modules
    path = tmp_path / "fox.safetensors"
    path.write_bytes(writer.write(modules, metadata("sd15"), form="peft", precision="fp32"))
    return path


def drop(page: Page, path: Path) -> None:
    tab(page, "Download")
    page.get_by_role("button", name="Inspect an adapter file").click()
    page.locator("#look-file input[type=file]").set_input_files(path)
    page.locator("#look-result .look").wait_for()


def choose(page: Page, place: str, option: str) -> None:
    page.locator(f"{place} input").first.click()
    page.get_by_role("option", name=option).first.click()


def test_files_from_elsewhere(shared: Server, visit: Visit, fox: Path, tmp_path: Path) -> None:
    page = visit(shared)
    drop(page, fox)
    summary = page.locator("#look-result").inner_text()
    assert "Stable Diffusion 1.x" in summary
    assert "PEFT/diffusers" in summary
    page.locator("#look-result summary", has_text="Checked").click()
    assert "It is for Micro" in page.locator("#look-result").inner_text()
    page.get_by_role("link", name="fox.safetensors").wait_for()
    # Several at once
    page.locator("#look-file input[type=file]").set_input_files(shutil.copy(fox, tmp_path / "hound.safetensors"))
    page.get_by_role("link", name="hound.safetensors").wait_for()
    tab(page, "Try out")
    page.get_by_text("Micro is a miniature").wait_for()
    page.locator("#prompt textarea").fill("a person with a hat")
    choose(page, "#adapter", "File: fox")
    page.get_by_role("button", name="Generate image").click()
    alone = picture(page, shared, "1")
    page.get_by_role("button", name="Several adapters, other base model").click()
    choose(page, "#adapter-2", "File: hound")
    page.get_by_role("button", name="Generate image").click()
    page.locator(".pictures.done").wait_for(timeout=90_000)
    page.wait_for_timeout(500)
    assert picture(page, shared, "1") != alone


def test_a_backup_is_uploaded_as_a_new_project(shared: Server, visit: Visit, tmp_path: Path) -> None:
    run = shared.home / "outputs" / "2026-01-01_120000_mira"
    shutil.copytree(MADE_BEFORE, run, ignore=shutil.ignore_patterns("*.md"))
    page = visit(shared)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download a backup").click()
    assert download.value.suggested_filename == "example-character.zip"
    project = tmp_path / "example-character.zip"
    download.value.save_as(project)
    new_project(page, "copy")
    upload(page, project)
    cards(page, len(dataset.image_files(shared.home / "datasets" / "example-character")))
    tab(page, "Download")
    page.get_by_label("Of all projects").check()
    page.get_by_text("More", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Backup", exact=True).click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert f"{run.name}/config.toml" in archive.namelist()
    wait(lambda: not list((run.parent / ".tmp").rglob("*.zip")))  # deleted once the last byte is sent
