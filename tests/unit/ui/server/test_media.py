"""The routes that serve files: what is theirs with a fixed type, anything else not at all."""

import io
import re
import zipfile
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from trainer import paths, runs
from trainer.config import build
from trainer.data import image_stats
from trainer.runs import Run
from ui.server import media


@pytest.fixture
def web(home: Path) -> TestClient:
    app = FastAPI()
    app.include_router(media.router)
    return TestClient(app)


@pytest.fixture
def run(character: Path) -> runs.Run:
    made = runs.create(build({"name": "rin", "dataset": "rin"}))
    checkpoint = made.folder / "checkpoints" / "000010"
    for folder in (checkpoint, made.folder / "previews", made.folder / "peft"):
        folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(made.folder / "previews" / "000010_0.png")
    (made.folder / "rin.safetensors").write_bytes(b"adapter")
    (made.folder / "peft" / "pytorch_lora_weights.safetensors").write_bytes(b"peft")
    (checkpoint / "adapter.safetensors").write_bytes(b"step ten")
    (checkpoint / "optimizer.safetensors").write_bytes(b"private")
    return made


def test_every_link_of_the_documentation_answers(web: TestClient) -> None:
    """From its first page on; what is not part of it is not served."""
    first = web.get("/help").url.path
    waiting, answered = [first], set[str]()
    while waiting:
        address = waiting.pop()
        answer = web.get(address)
        assert answer.status_code == 200, address
        answered.add(address)
        if answer.headers["content-type"].startswith("text/html"):
            assert "cog.out" not in answer.text, address
            links = [urljoin(address, link) for link in re.findall(r"(?:href|src)=\"([^\"#]+)", answer.text)]
            inside = {link for link in links if link.startswith("/help/")}
            waiting += inside - answered - set(waiting)
    assert len(answered) > 30
    assert 'id="cuda-out-of-memory"' in web.get("/help/docs/troubleshooting.md").text
    for elsewhere in ("app.py", "docs/../app.py", "%2e%2e/%2e%2e/etc/passwd", "outputs/README.md", "docs"):
        assert web.get(f"/help/{elsewhere}").status_code == 404, elsewhere


def test_images_have_the_type_of_their_extension_and_thumbnails_are_webp(web: TestClient, character: Path) -> None:
    page = b"<script>alert(1)</script>"
    (character / "page.png").write_bytes(page)
    (character / "both.jpg").write_bytes((character / "01.png").read_bytes() + page)
    for route in ("image", "dataset"):
        assert web.get(f"/media/{route}/rin/page.png").status_code == 404
    answer = web.get("/media/image/rin/both.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == (character / "both.jpg").read_bytes()
    Image.new("RGB", (900, 600), "red").save(character / "large.png")
    answer = web.get("/media/dataset/rin/large.png")
    assert answer.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 320


def test_adapters_checkpoints_and_backups_are_attachments(web: TestClient, run: Run) -> None:
    names = {
        "rin.safetensors": ("rin.safetensors", b"adapter"),
        "checkpoint/10": ("rin-000010.safetensors", b"step ten"),
    }
    for address, (name, content) in {**names, "peft": ("pytorch_lora_weights.safetensors", b"peft")}.items():
        answer = web.get(f"/download/{run.id}/{address}")
        assert (answer.content, answer.headers["content-type"]) == (content, "application/octet-stream")
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    for address, inside in (("project/rin", "01.png"), (f"run/{run.id}", "config.toml")):
        answer = web.get(f"/backup/{address}")
        assert answer.headers["content-disposition"] == f'attachment; filename="{address.partition("/")[2]}.zip"'
        assert inside in {Path(name).name for name in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()}
        assert list(paths.uploads().rglob("*.zip")) == []


def test_previews_and_pictures_are_png(web: TestClient, run: Run, character: Path) -> None:
    preview = f"/media/run/{run.id}/000010_0.png"
    assert web.get(preview).headers["content-type"] == "image/png"
    image_stats.measure_missing(character)
    assert Image.open(io.BytesIO(web.get(f"{preview}/nearest").content)).size == (256, 256), "a training image"
    paths.sample_images().mkdir()
    name = "0" * 32 + ".png"
    (paths.sample_images() / name).write_bytes(b"x")
    assert web.get(f"/media/picture/{name}").status_code == 200


IMAGES = ["rin/01.txt", "rin/..%2f..%2fsecret.png", "..%2fdatasets/01.png", "rin/.hidden.png", "rin/link.png"]
RUN = ["config.toml", "..%2fconfig.toml", "999999_0.png"]
FILES = ["config.toml", "..%2f..%2fsecret.safetensors", "%2fetc%2fpasswd", "checkpoint/11", "checkpoint/10%2foptimizer"]
OTHERS = ["/media/mask/rin/01.png/large", "/media/picture/%2e%2e%2f.page.json", "/download/.bin/rin.safetensors"]


@pytest.mark.parametrize(
    "path",
    [f"/media/dataset/{name}" for name in IMAGES]
    + [f"/media/run/RUN/{name}" for name in RUN]
    + [f"/download/RUN/{name}" for name in FILES]
    + ["/media/image/rin/01.txt", "/download/nobody/peft", "/download/RUN/link.safetensors", *OTHERS],
)
def test_nothing_else_is_served(web: TestClient, run: Run, home: Path, path: str) -> None:
    for folder in (home, home / "outputs"):
        (folder / "secret.safetensors").write_bytes(b"secret")
        Image.new("RGB", (8, 8)).save(folder / "secret.png")
    (home / "outputs" / ".page.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(home / "datasets" / "rin" / ".hidden.png")
    (run.folder / "link.safetensors").symlink_to(home / "secret.safetensors")
    (home / "datasets" / "rin" / "link.png").symlink_to(home / "secret.png")
    assert web.get(path.replace("RUN", run.id)).status_code in (404, 422)
