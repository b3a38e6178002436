"""What the page draws of a dataset: the crops on its cards, its buckets."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ui.state import page_memory
from ui.tabs import image_grid
from ui.tabs.image_grid import Selection


@pytest.fixture
def folder(home: Path) -> Path:
    folder = home / "datasets" / "rin"
    folder.mkdir()
    for name, size in {"a": (300, 300), "b": (300, 300), "c": (600, 300)}.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return folder


def test_buckets_are_counted_at_the_resolution(folder: Path) -> None:
    sizes = image_grid.overview(image_grid.read("rin"))["sizes"]
    assert sizes["bars"] == [{"label": "128 x 128", "count": 2}, {"label": "192 x 64", "count": 1}]
    page_memory.remember("rin", "settings", json.dumps({"training": {"resolution": 256}}))
    project = image_grid.read("rin")
    assert image_grid.overview(project)["sizes"]["bars"][0] == {"label": "256 x 256", "count": 2}
    facts = [item["facts"] for item in image_grid.cards(project, Selection())["items"]]
    assert facts[0] == "300 x 300 pixels · trained at 256 x 256"
    page_memory.remember("rin", "settings", "[]")
    assert image_grid.read("rin").resolution == 128

    (folder.parent / "none").mkdir()
    assert image_grid.overview(image_grid.read("none"))["sizes"] is None
