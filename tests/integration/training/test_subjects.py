"""Several datasets in one run: each image has the trigger of its own, and is preserved without that one."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.integration.training.test_train import finish, is_third, quiet, same, settings
from trainer import families, runs
from trainer.config import ModelConfig
from trainer.data import dataset
from trainer.data.captions import contains_trigger
from trainer.errors import UserError
from trainer.runs import Run
from trainer.train import train
from trainer.training import encode

SUBJECTS: dict[str, Any] = {"subjects": ["kim --trigger kmx2 --repeats 2"]}
CLASSES: dict[str, Any] = {
    "class_word": "girl", "regularization__dataset": "girls", "regularization__share": 0.5,
    "subjects": ["kim --trigger kmx2 --repeats 2 --class boy --regularization boys"], "preservation__share": 1.0,
}  # fmt: skip


@pytest.fixture
def kim(character: Path) -> Path:
    """A second dataset of four images, beside `rin`."""
    folder = character.with_name("kim")
    folder.mkdir()
    for number, caption in enumerate(("kim's picture 1", "kim's picture 2", "kim's picture 3", "kim's hat, rin"), 1):
        shutil.copy(character / f"{number:02}.png", folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture
def classes(character: Path) -> None:
    """Two datasets of regularization images: three girls, and two boys, one of whom has a caption."""
    for name, count in (("girls", 3), ("boys", 2)):
        folder = character.with_name(name)
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64), (80 * number, 90, count)).save(folder / f"{number}.png")
    (character.with_name("boys") / "1.txt").write_text("a boy in a park")


@pytest.mark.usefixtures("kim")
def test_each_image_is_taught_with_its_own_trigger(tiny_sd: Path) -> None:
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    changes = {"captions__trigger_only": 0.3, "preservation__share": 0.5, "training__batch_size": 1}
    config = settings(tiny_sd, **SUBJECTS, **changes)
    examples = dataset.read_subjects(config.taught)
    assert Counter(example.trigger for example in examples) == {"rin": 14, "kmx2": 8}
    built = encode.build(family, examples, config, quiet)
    batches = [built.at(step, 0) for step in range(88)]
    captions = Counter(batch.captions[0] for batch in batches)
    kims = [text for text in captions if contains_trigger(text, "kmx2")]
    assert all(contains_trigger(text, "rin") for text in captions if text not in kims)
    assert all("kim's" in text for text in kims if text != "kmx2")
    assert "kmx2, kim's hat, rin" in kims, "an image of both has both words"
    assert captions["rin"] > 5
    assert captions["kmx2"] > 3
    assert sum(captions[text] for text in kims) == 32, "twice as often, in each of four epochs"
    preserved = {text for batch in batches for text in batch.preserved}
    assert {"kim's picture 1", "kim's hat"} < preserved
    assert not any(contains_trigger(text, trigger) for text in preserved for trigger in ("rin", "kmx2"))


@pytest.mark.usefixtures("classes")
def test_each_subject_has_its_class_word_and_its_regularization_images(kim: Path, tiny_sd: Path) -> None:
    (kim / "1.txt").unlink()
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    config = settings(tiny_sd, **CLASSES, training__batch_size=1, captions__multiple=True)
    built = encode.build(family, dataset.read_subjects(config.taught), config, quiet)
    batches = [built.at(step, 0) for step in range(88)]
    captions = Counter(batch.captions[0] for batch in batches)
    assert captions["girl"] == 22, "every other batch, in turn with the boys"
    assert captions["boy"] == captions["a boy in a park"] == 11
    assert captions["kmx2 boy"] == 4, "an own image without a caption has both words"
    preserved = {text for batch in batches for text in batch.preserved}
    assert {"boy", "boy, kim's picture 2", "boy, kim's hat, girl"} < preserved
    assert all(text.startswith(("boy", "girl")) for text in preserved)
    (kim.with_name("boys") / "0.png").unlink()
    (kim.with_name("boys") / "1.png").unlink()
    with pytest.raises(UserError, match="dataset 'boys' of regularization images is empty"):
        encode.build(family, dataset.read_subjects(config.taught), config, quiet)


@pytest.mark.usefixtures("kim", "classes")
def test_a_run_of_two_subjects_is_resumed_and_names_both(tiny_sd: Path) -> None:
    whole = runs.create(settings(tiny_sd, **CLASSES, training__text_encoder=True))
    adapter = finish(whole)
    with safe_open(whole.export, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "rin, kmx2"
    parts = runs.create(settings(tiny_sd, **CLASSES, training__text_encoder=True))
    train(parts.config(), Run(parts.folder, lambda event: runs.request(parts, "stop") if is_third(event) else None))
    assert runs.look(parts).state.step == 3
    assert same(finish(parts), adapter)


@pytest.mark.usefixtures("kim")
def test_a_further_dataset_that_is_empty_or_missing_is_named(character: Path, tiny_sd: Path) -> None:
    (character.with_name("lea")).mkdir()
    for line, words in (
        ("lea --trigger leax", "no images in the dataset 'lea'"),
        ("bo --trigger box", "no dataset 'bo'"),
    ):
        with pytest.raises(UserError, match=words):
            finish(runs.create(settings(tiny_sd, subjects=[line])))
