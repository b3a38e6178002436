"""Features of images by tiny real models, and by the denoiser of each family; and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import CHARACTER, STYLE
from tests.tiny_captioners import make_blip
from tests.tiny_feature_models import make_clip, make_dino, make_dinov2
from trainer import paths
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.measuring import features, kinds
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
    assert first.dtype == torch.float32
    assert first.dim() == 1
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
        assert texts is not None
        assert texts.shape == (2, len(model.image(picture())))
        assert not torch.equal(texts[0], texts[1])
    else:
        assert texts is None
    assert model.key == features.load(str(models[name]), ModelConfig(), "", CPU).key
    assert len({features.load(str(path), ModelConfig(), "", CPU).key for path in models.values()}) == 3


@pytest.mark.nightly
def test_the_denoiser_of_each_family(bases: dict[str, Path]) -> None:
    for base in bases.values():
        model = features.load("", ModelConfig(base=str(base)), "abc", CPU)
        check(model)
        assert model.texts(["a girl"]) is None
        assert "abc" in model.key


def test_in_its_features_images_of_a_subject_are_closer_to_each_other_than_to_others() -> None:
    model = features.load("", ModelConfig(base="micro"), "", CPU)
    ours = torch.stack([model.image(picture(f"{number:02}.png")) for number in range(1, 7)])
    others = torch.stack([model.image(Image.open(STYLE / f"{n:02}.png").convert("RGB")) for n in range(1, 7)])
    both = torch.nn.functional.normalize(torch.cat([ours, others]) - torch.cat([ours, others]).mean(0))
    close = both @ both.T
    assert close[:6, :6].mean() > close[:6, 6:].mean() + 0.2


def test_what_is_listed_and_what_is_refused(models: dict[str, Path], home: Path, tmp_path: Path) -> None:
    paths.models().mkdir()
    (paths.models() / "vit").symlink_to(models["clip"])
    make_blip(paths.models() / "blip")
    assert [label for label, _folder in kinds.choices()] == ["The base model itself", "vit, CLIP"]
    for name, words in {
        "/nowhere/at-all": "There is no feature model 'at-all'.",
        str(paths.models() / "blip"): "Limner cannot compare images with 'blip': it is blip.",
        str(tmp_path): "it is not a model of transformers",
    }.items():
        with pytest.raises(UserError, match=words) as refusal:
            features.load(name, ModelConfig(), "", CPU)
        assert "nowhere/" not in str(refusal.value)
        assert "DINOv2" in refusal.value.remedy
    pickled = make_dinov2(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="is not in safetensors format"):
        features.load(str(pickled), ModelConfig(), "", CPU)
    damaged = make_dinov2(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="The feature model 'damaged' cannot be loaded") as refusal:
        features.load(str(damaged), ModelConfig(), "", CPU)
    assert str(tmp_path) not in str(refusal.value)
