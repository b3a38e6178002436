"""The memory of a step on a card before any was taken, and what is said where it does not fit."""

import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from trainer import config
from trainer.machine import card_memory, nvidia
from trainer.machine.nvidia import Installed


@pytest.fixture(autouse=True)
def real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniatures are taken for models of real size, and torch for one that uses cards."""
    monkeypatch.setattr("trainer.base_models.detect.is_small", lambda _: False)
    monkeypatch.setattr(nvidia, "built_for", lambda: (13, 0))
    monkeypatch.delenv("LIMNER_DEVICE", raising=False)


def sentence(monkeypatch: pytest.MonkeyPatch, base: Path | str, card: float, **training: object) -> str:
    monkeypatch.setattr(nvidia, "installed", lambda: (Installed("0", "GPU-0", card * 2**30),) if card else ())
    data = {"name": "rin", "dataset": "rin", "model": {"base": str(base)}}
    return card_memory.describe(config.build({**data, "training": {"text_encoder": False, **training}}))


def test_the_fastest_way_that_fits_is_named(monkeypatch: pytest.MonkeyPatch, bases: dict[str, Path]) -> None:
    xl = bases["sdxl"]
    assert sentence(monkeypatch, xl, 0) == ""
    assert sentence(monkeypatch, "micro", 8) == ""
    whole = "A step needs about 13.2 of the 23.0 GB that the card has for it, as computed."
    assert sentence(monkeypatch, xl, 24, resolution=1024) == whole
    assert "6.8 of the 7.0 GB" in sentence(monkeypatch, xl, 8, resolution=1024)
    assert "checkpointing transformers and offload off" in sentence(monkeypatch, xl, 8, resolution=1024)
    monkeypatch.setenv("LIMNER_DEVICE", "cpu")
    assert sentence(monkeypatch, xl, 24) == ""


@pytest.mark.parametrize(
    ("card", "training", "setting"),
    [
        (8, {"batch_size": 4, "micro_batches": 1, "gradient_checkpointing": "transformers"}, "micro_batches) to 0"),
        (8, {"gradient_checkpointing": "off"}, "training.gradient_checkpointing) to auto"),
        (4, {"gradient_checkpointing": "all", "offload": "off"}, "training.offload) to auto"),
        (8.5, {"gradient_checkpointing": "off", "offload": "off", "resolution": 768}, "checkpointing) to auto"),
        (2.6, {}, "model.weights) to nf4"),
        (2, {}, "Resolution (training.resolution) to 512"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(
    monkeypatch: pytest.MonkeyPatch, bases: dict[str, Path], card: float, training: dict[str, object], setting: str
) -> None:
    text = sentence(monkeypatch, bases["sdxl"], card, **{"resolution": 1024} | training)
    assert f"but the card has {card - 1:.1f} GB" in text
    assert setting in text
    assert float(re.findall(r"about (\d+\.\d) GB then", text)[0]) <= card - 1


def test_the_figures_are_those_of_the_documentation() -> None:
    """Those of the denoiser alone; `tests.fake_cuda` measures them."""
    text = (CHECKOUT / "docs" / "small-cards.md").read_text(encoding="utf-8")
    titles = {"sdxl": "Stable Diffusion XL", "sd3-5-medium": "Stable Diffusion 3.5 Medium"}
    titles |= {"sd3-5-large": "Stable Diffusion 3.5 Large", "flux": "FLUX.1", "z_image": "Z-Image", "chroma": "Chroma"}
    titles |= {"flux2_klein": "FLUX.2 klein", "flux2_klein-9b": "FLUX.2 klein 9B", "qwen_image": "Qwen-Image"}
    titles |= {"krea2": "Krea 2", "anima": "Anima"}
    for model, title in titles.items():
        (row,) = re.findall(rf"^\| {re.escape(title)}, 1024 pixels \| (.*) \|$", text, re.M)
        assert card_memory.figures(model) == tuple(map(float, row.split(" | "))), model
        assert card_memory._weights(model, "nf4") < card_memory._weights(model, "full") / 2
