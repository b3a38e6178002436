"""Micro is asked whether it can draw pictures, and teaches those without captions so that no noise comes of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import foreign
from tests.conftest import CHARACTER, STYLE
from tests.unit.ui.answers import answers
from trainer import families
from trainer.config import ModelConfig
from trainer.data import reach
from trainer.families import Family
from trainer.training import gauge
from ui.tabs import image_grid, images
from ui.tabs import train as training


@pytest.fixture(scope="module")
def micro() -> Iterator[Family]:
    threads = torch.get_num_threads()
    yield families.load(ModelConfig(), torch.device("cpu"), torch.float32)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_what_micro_cannot_draw_is_said_before_the_start(home: Path) -> None:
    folder = foreign.save(home / "datasets" / "rin", "cat", 5)
    while image_grid.read("rin").left:
        assert images.measure({"project": "rin"})["ok"]
    titles = [row["title"] for row in image_grid.overview(image_grid.read("rin"))["findings"]]
    assert "Micro cannot draw images like these." in titles
    assert "Micro cannot draw images like these." in training.plan(answers())["cautions"]
    assert len(reach.known(folder)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("folder", [CHARACTER, STYLE], ids=lambda folder: folder.name)
def test_the_examples_are_within_reach(folder: Path, micro: Family) -> None:
    pixels = [gauge.read(path) for path in reach.sample(folder)]
    figures = gauge.figures(micro, torch.stack([picture for picture in pixels if picture is not None]))
    assert not reach.is_beyond(dict(zip("abcdefghijkl", figures, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*foreign.DRAWINGS, *foreign.PHOTOGRAPHS])
def test_foreign_drawings_and_photographs_are_beyond(kind: str, micro: Family, tmp_path: Path) -> None:
    assert reach.is_beyond(gauge.complete(foreign.save(tmp_path / kind, kind, 7), micro))


def test_what_cannot_be_measured_is_not_looked_at_again(tmp_path: Path, micro: Family) -> None:
    (tmp_path / "01.png").write_bytes(b"no picture")
    assert gauge.complete(tmp_path, micro) == {}
    assert reach.missing(tmp_path) == []
