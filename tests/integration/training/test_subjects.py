"""Several datasets in one run: each image has the trigger of its own, and is preserved without that one."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.integration.training.test_train import assert_resumes, quiet, settings
from trainer.data import dataset
from trainer.data.captions import contains_trigger
from trainer.errors import UserError
from trainer.families import Family
from trainer.training import encode

SUBJECTS: dict[str, Any] = {"subjects": ["kim --trigger kmx2 --repeats 2"]}
CLASSES: dict[str, Any] = {
    "class_word": "girl",
    "regularization__dataset": "girls",
    "regularization__share": 0.5,
    "subjects": ["kim --trigger kmx2 --repeats 2 --class boy --regularization boys"],
    "preservation__share": 1.0,
}


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
def test_each_image_is_taught_with_its_own_trigger(family: Family, tiny_sd: Path) -> None:
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
def test_each_subject_has_its_class_and_regularization_images(family: Family, kim: Path, tiny_sd: Path) -> None:
    (kim / "1.txt").unlink()
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
@pytest.mark.slow
def test_a_run_of_two_subjects_is_resumed_and_names_both(tiny_sd: Path) -> None:
    run = assert_resumes(settings(tiny_sd, **CLASSES, training__text_encoder=True), 3)
    with safe_open(run.export, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "rin, kmx2"
