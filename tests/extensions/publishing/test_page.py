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
from tests.e2e.conftest import Browser, Server, Visit, browser, shared, visit
from tests.e2e.test_page import PHONE, tab
from tests.extensions.publishing.conftest import make_run
from trainer import runs
from trainer.config import build
from trainer.runs import Run

__all__ = ["browser", "shared", "visit"]


@pytest.fixture
def finished(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A finished run of the first project, made without training."""
    monkeypatch.setenv("LIMNER_HOME", str(shared.home))
    run = make_run("example-character")
    yield run
    shutil.rmtree(run.folder)


@pytest.mark.browser
def test_a_run_is_shared_as_a_report_and_as_a_folder_to_publish(
    shared: Server, visit: Visit, browser: Browser, finished: Run, tmp_path: Path
) -> None:
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
    with page.expect_download() as saved:
        row.get_by_role("link", name="Report").click()
    assert saved.value.suggested_filename == "rin-report.html"
    file = tmp_path / "rin-report.html"
    saved.value.save_as(file)
    for scheme, color in (("light", "rgb(248, 250, 252)"), ("dark", "rgb(2, 6, 23)")):
        context = browser.new_context(color_scheme=scheme, java_script_enabled=False, **PHONE)
        report, requests = context.new_page(), list[str]()
        report.on("request", lambda request, requests=requests: requests.append(request.url))
        report.goto(file.as_uri())
        assert report.evaluate("getComputedStyle(document.body).backgroundColor") == color
        assert report.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        assert report.locator("img").count() == 10
        assert report.evaluate("document.documentElement.scrollWidth <= innerWidth")
        report.get_by_text("All settings").click()
        report.get_by_text("max_grad_norm").wait_for()
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        context.close()


def test_a_report_is_a_file_to_save_that_nothing_caches(character: Path) -> None:
    run = runs.create(build({"name": "rin", "dataset": "rin"}))
    app = FastAPI()
    app.include_router(routes.router)
    web = TestClient(app)
    answer = web.get(f"/report/{run.id}")
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''rin-report.html"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.text.startswith("<!doctype html>")
    assert web.get("/report/none").status_code == web.get(f"/publish/{run.id}").status_code == 404, (
        "not there, or not ended"
    )
