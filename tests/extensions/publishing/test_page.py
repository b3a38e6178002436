"""A run that is shared from the page."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from limner_extensions.publishing import routes
from tests.conftest import wait
from tests.e2e.conftest import Server, Visit, browser, refused, shared, visit
from tests.e2e.test_page import tab
from tests.extensions.publishing.conftest import make_run
from trainer import runs
from trainer.config import build
from trainer.runs import Run

__all__ = ["browser", "refused", "shared", "visit"]


@pytest.fixture
def finished(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A finished run of the first project, made without training."""
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))
    run = make_run("example-character")
    yield run
    shutil.rmtree(run.folder)


@pytest.mark.browser
def test_a_run_is_shared_as_a_folder_to_publish(shared: Server, visit: Visit, finished: Run) -> None:
    page = visit(shared)
    tab(page, "Download")
    page.get_by_label("Of all projects").check()
    row = page.locator(f".run-row[data-run='{finished.id}']")
    row.get_by_text("More", exact=True).click()
    with page.expect_download() as saved:
        row.get_by_role("link", name="Zip to publish").click()
    names = zipfile.ZipFile(saved.value.path()).namelist()
    assert {"rin/README.md", "rin/SHA256SUMS", "rin/rin.safetensors", "rin/settings.toml"} <= {*names}
    wait(lambda: not list((finished.folder.parent / ".tmp").rglob("*.zip")))  # it leaves nothing behind


def test_a_run_that_has_not_ended_has_no_folder_to_publish(character: Path) -> None:
    run = runs.create(build({"name": "rin", "dataset": "rin"}))
    app = FastAPI()
    app.include_router(routes.router)
    web = TestClient(app)
    assert routes.links(runs.look(run)) == ""
    assert web.get("/publish/none").status_code == web.get(f"/publish/{run.id}").status_code == 404
