"""Features of images by tiny real models, and by the denoiser of each family; and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import CHARACTER, STYLE
from tests.tiny_feature_models import make_clip, make_dino, make_dinov2
from trainer.config import ModelConfig
from trainer.measuring import features
from trainer.measuring.features import FeatureModel

CPU = torch.device("cpu")
MAKERS = {"clip": make_clip, "dinov2": make_dinov2, "dino": make_dino}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("features")
    return {name: make(folder / name) for name, make in MAKERS.items()}


def picture(name: str = "01.png") -> Image.Image:
    return Image.open(CHARACTER / name).convert("RGB")


def check(model: FeatureModel) -> None:
    """Features follow from the image, and from nothing else."""
    first, again, other = model.image(picture()), model.image(picture()), model.image(picture("05.png"))
    assert (first.dtype, first.dim()) == (torch.float32, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()


@pytest.mark.parametrize(("name", "title"), [("clip", "CLIP"), ("dinov2", "DINOv2"), ("dino", "DINO")])
def test_a_model_in_a_folder(models: dict[str, Path], name: str, title: str) -> None:
    model = features.load(str(models[name]), ModelConfig(), "", CPU)
    assert model.name == f"{name} ({title})"
    check(model)
    texts = model.texts(["a girl", "a very long prompt " * 20])
    if name == "clip":
        assert texts.shape == (2, len(model.image(picture())))
        assert not torch.equal(texts[0], texts[1])
    else:
        assert texts is None
    assert model.key == features.load(str(models[name]), ModelConfig(), "", CPU).key
    assert len({features.load(str(path), ModelConfig(), "", CPU).key for path in models.values()}) == 3


def test_images_of_a_subject_are_close_in_its_features() -> None:
    model = features.load("", ModelConfig(base="micro"), "", CPU)
    ours = torch.stack([model.image(picture(f"{number:02}.png")) for number in range(1, 7)])
    others = torch.stack([model.image(Image.open(STYLE / f"{n:02}.png").convert("RGB")) for n in range(1, 7)])
    both = torch.nn.functional.normalize(torch.cat([ours, others]) - torch.cat([ours, others]).mean(0))
    close = both @ both.T
    assert close[:6, :6].mean() > close[:6, 6:].mean() + 0.2
