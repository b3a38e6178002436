"""The memory that real models take on a CUDA card, computed without one, is what the documentation says."""

import re
from pathlib import Path

import pytest
import torch

from tests.conftest import CHECKOUT
from tests.fake_cuda import measure
from trainer.training import memory

CARDS = (4, 6, 8, 10, 12, 16)  # GB
BESIDE = 1.0  # GB of a card for CUDA itself, for workspaces of its libraries and for fragments
MOST_WASTED = 2.0  # GB
SD15 = "Stable Diffusion 1.5, 512 pixels"
XL = "Stable Diffusion XL, 1024 pixels"
FLUX = "FLUX.1, 1024 pixels"
WITH_TEXT_ENCODERS = "Stable Diffusion XL, with its text encoders"  # as in the presets
WAYS = (*memory.CHECKPOINTING, "offload half", "offload all")


@pytest.fixture
def guards(request: pytest.FixtureRequest) -> Path:
    if torch.backends.cuda.is_built():
        pytest.skip("the pretended card needs a torch that is built without CUDA")
    cache: pytest.Cache = request.config.cache
    return cache.mkdir("fake_cuda")


def documented(title: str) -> dict[str, float]:
    """Return GB by way of gradient checkpointing and offloading from the table in the documentation."""
    text = (CHECKOUT / "docs" / "settings.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", text, re.M)
    return dict(zip(WAYS, map(float, row.split(" | ")), strict=True))


@pytest.mark.parametrize("card", CARDS)
def test_each_card_has_a_plan_for_xl_that_uses_it(card: int) -> None:
    room = card - BESIDE
    taken = max(size for size in documented(XL).values() if size <= room)
    assert room - taken <= MOST_WASTED
    assert min(documented(WITH_TEXT_ENCODERS).values()) <= room


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("title", "arguments"), [(SD15, ("sd15",)), (WITH_TEXT_ENCODERS, ("sdxl", "text-encoders")), (FLUX, ("flux",))]
)
def test_a_step_takes_what_the_documentation_says(title: str, arguments: tuple[str, ...], guards: Path) -> None:
    taken = measure(guards, *arguments, *WAYS)
    assert {way: round(size, 1) for way, size in taken.items()} == documented(title)


@pytest.mark.slow
def test_recomputing_saves_memory_on_a_card(guards: Path) -> None:
    """The one that runs at every speed."""
    taken, expected = measure(guards, "sd15", "transformers"), documented(SD15)
    assert round(taken["transformers"], 1) == expected["transformers"] < expected["off"]
