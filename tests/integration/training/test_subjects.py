"""Several datasets in one run: each image has the trigger of its own, and is preserved without that one."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
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


@pytest.fixture
def kim(character: Path) -> Path:
    """A second dataset of four images, beside `rin`."""
    folder = character.with_name("kim")
    folder.mkdir()
    for number, caption in enumerate(("kim's picture 1", "kim's picture 2", "kim's picture 3", "kim's hat, rin"), 1):
        shutil.copy(character / f"{number:02}.png", folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


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


@pytest.mark.usefixtures("kim")
def test_a_run_of_two_subjects_is_resumed_and_names_both(tiny_sd: Path) -> None:
    whole = runs.create(settings(tiny_sd, **SUBJECTS, training__text_encoder=True))
    adapter = finish(whole)
    with safe_open(whole.export, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "rin, kmx2"
    parts = runs.create(settings(tiny_sd, **SUBJECTS, training__text_encoder=True))
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
