"""No setting is there for show: each is changed once, and what it stands for changes with it."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.integration.training.test_train import OPTIONS, cases, finish, finished, mute, same, settings
from trainer import paths, runs, schema
from trainer.adapter_files import reader
from trainer.config import TrainConfig
from trainer.data import dataset
from trainer.data.captions import contains_trigger
from trainer.errors import UserError
from trainer.families import Family
from trainer.optim.optimizers import ROWS, Row
from trainer.runs import Run, events
from trainer.training.inputs import encode

# Other values of settings, by what has to be on so that they matter. Of most settings of captions, adapters, schedules,
# losses and families, other tests say what they do.
CHANGES = {
    "": "seed=1 optimizer.beta1=0.5 optimizer.beta2=0.5 optimizer.weight_decay=0.5 schedule.warmup=1.0 "
    'objective.min_timestep=500 model.weights="int8"',
    'adapter.kind="lokr"': "adapter.factor=4",
    'schedule.kind="warmup-stable-decay"': "schedule.cooldown=0.9",
    "training.resolution=128": "training.further_resolutions=[64]",
    'optimizer.kind="lion"': "training.max_grad_norm=0.001",
    "training.text_encoder=true": "training.text_encoder_lr_factor=2.0",
    'objective.weighting="p2"': "objective.p2_gamma=0.5",
    "images.crops=2": "images.min_crop=0.3",
    "preservation.share=0.5": 'class_word="girl" preservation.weight=1.0',
    'preservation.share=0.5 preservation.prompts=["house"]': "preservation.generated_share=1.0",
    "preservation.share=0.5 preservation.generated_share=1.0": 'preservation.prompts=["house"]',
    'regularization.dataset="rin"': "regularization.share=0.7",
    'regularization.dataset="rin" regularization.share=0.7': "regularization.weight=0.1",
}
CASES = {change: needed for needed, changes in CHANGES.items() for change in changes.split()}


def parsed(assignments: str) -> dict[str, Any]:
    pairs = (word.partition("=")[::2] for word in assignments.split())
    return {path.replace(".", "__"): json.loads(value) for path, value in pairs}


PREVIEWED: dict[str, Any] = {"negative_prompt": "red", "strength": 0.5, "guidance": 9.0, "steps": 3, "seed": 5}
_LEARNED: dict[str, dict[str, torch.Tensor]] = {}
QUICK = {"training__steps": 2, "preview__every": 0}


def learned(base: Path, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the adapter that some settings make of the example; each is trained once for all tests."""
    key = json.dumps([options, len(dataset.image_files(paths.datasets() / "rin"))], sort_keys=True)
    if key not in _LEARNED:
        _LEARNED[key] = finish(runs.create(settings(base, **QUICK | options)))
    return _LEARNED[key]


@pytest.fixture
def five(character: Path) -> None:
    for image in dataset.image_files(character)[5:]:
        image.unlink()


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize("change", cases(CASES, pytest.mark.slow, ["schedule.warmup=1.0"]))
def test_another_value_gives_another_adapter(tiny_sd: Path, change: str) -> None:
    needed = parsed(CASES[change])
    assert not same(learned(tiny_sd, needed), learned(tiny_sd, needed | parsed(change)))


@pytest.mark.nightly
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_optimizer_heeds_its_own_settings(character: Path, tiny_sd: Path, row: Row) -> None:
    rate = 10.0 if row.finds_rate else 0.01
    needed: dict[str, Any] = {"optimizer__kind": row.kind, "optimizer__learning_rate": rate, "training__steps": 4}
    needed |= {"schedule__kind": "constant"} if row.averages else {}
    usual = learned(tiny_sd, needed)
    values = dict.fromkeys(row.settings, 0.3) | {"learning_rate": 0.03, "weight_decay": 0.6}
    for name, value in values.items():
        assert not same(learned(tiny_sd, needed | {f"optimizer__{name}": value}), usual), name


def test_every_setting_is_tested() -> None:
    """By the tests here, by the options that all runs are tested with, or by a test elsewhere that sets or reads it."""
    paths = {path for path in schema.setting_paths(TrainConfig) if not path.startswith("record")}
    leaves = {path for path in paths if "." in path and not any(other.startswith(f"{path}.") for other in paths)}
    here = {change.partition("=")[0] for change in CASES} | {f"preview.{name}" for name in PREVIEWED}
    here |= {key.replace("__", ".") for chosen in OPTIONS.values() for key in chosen}
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[2].rglob("test_*.py"))
    named = {section + "." + name for section, name in re.findall(r"\b([a-z_]+?)(?:__|\.)([a-z_]+)\b", written)}
    named |= {f"{section}.{name}" for section, name in re.findall(r'"([a-z]+)": \{"([a-z_]+)"', written)}
    here |= {f"optimizer.{name}" for row in ROWS.values() for name in row.settings} | {"training.offload"}
    assert leaves - here - named == set()


@pytest.mark.slow
def test_previews_are_made_as_lines_and_settings_say(character: Path, tiny_sd: Path) -> None:
    def drawn(run: Run, step: int = 3) -> list[np.ndarray[Any, Any]]:
        return [pixels(file) for file in sorted(run.folder.glob(f"previews/00000{step}_*.png"))]

    lines = ["rin", "a house", "rin --d 5", "rin --n red", "rin --l 9", "rin --s 3", "rin --strength 0.5"]
    lines += ["rin --d 5 --n red --l 9 --s 3 --strength 0.5", "rin --strength 0", "rin --w 96 --h 64"]
    options = {"training__steps": 3, "preview__every": 2, "preview__at_start": True}
    run = finished(tiny_sd, preview__prompts=lines, **options)
    images = drawn(run)
    assert [len(drawn(run, step)) for step in range(4)] == [len(lines), 0, len(lines), len(lines)]
    assert (len({image.tobytes() for image in images}), images[-1].shape) == (len(lines), (64, 96, 3))
    assert np.array_equal(drawn(run, 0)[0], images[-2]), "at the start and at strength 0 it is the base model"
    same_for_all = finished(tiny_sd, **options, **{f"preview__{name}": value for name, value in PREVIEWED.items()})
    assert np.array_equal(drawn(same_for_all)[0], images[-3]), "as if each line said it"
    assert same(load_file(same_for_all.export), load_file(run.export)), "the strength is not that of the training"


def test_a_dataset_that_is_edited_and_removed_meanwhile_changes_nothing(character: Path, tiny_sd: Path) -> None:
    config = settings(tiny_sd, preview__every=100, preview__prompts=[], training__steps=2)
    usual, made = runs.create(config), runs.create(config)
    expected = finish(usual)

    def remove(event: events.Event) -> None:
        if isinstance(event, events.Step):
            (character / "01.txt").write_text("something else")
            for image in character.glob("*.png"):
                image.unlink()

    assert same(finish(Run(made.folder, remove)), expected)
    assert runs.look(made).state.losses == runs.look(usual).state.losses
    assert sum("do not show the shapes" in warning for warning in runs.look(usual).state.warnings) == 1


def pixels(file: Path) -> np.ndarray[Any, Any]:
    with Image.open(file) as image:
        return np.asarray(image)


def test_batches_take_turns_between_resolutions(family: Family, character: Path, tiny_sd: Path) -> None:
    """Memory is measured at the full size."""
    options: dict[str, Any] = {"training__resolution": 192, "training__further_resolutions": [128, 64]}
    options |= {"training__steps": 8, "training__gradient_accumulation": 2}
    options |= {"regularization__dataset": "rin", "regularization__share": 0.5, "regularization__weight": 0.5}
    examples = dataset.read(character, "rin")
    batches = encode.build(family, examples[1:], settings(tiny_sd, **options), mute, held=examples[:1])
    in_turn = [batches.at(step, micro) for step in range(8) for micro in range(2)]
    assert [batch.mean.shape[-1] for batch in in_turn] == [*[24, 16, 8] * 5, 24]
    for batch in in_turn:
        side = 8 * batch.mean.shape[-1]
        assert batch.sizes.tolist() == [[256, 256, 0, 0, side, side]] * len(batch.mean)
    step, micro = batches.largest(8)
    assert batches.at(step, micro).mean.shape[-1] == 24
    assert batches.held_batch(0).mean.shape[-1] == 24, "the loss of held-out images is that at the resolution"
    for turn in range(3):
        weights = [batch.weight for batch in in_turn[turn:12:3]]
        assert sorted(weights) == [0.5, 0.5, 1, 1], "at each resolution half of the images are for regularization"


SUBJECTS: dict[str, Any] = {"subjects": ["kim --trigger kmx2 --repeats 2"]}
CLASSES: dict[str, Any] = {"class_word": "girl", "regularization__dataset": "girls", "regularization__share": 0.5}
CLASSES |= {"subjects": ["kim --trigger kmx2 --repeats 2 --class boy --regularization boys"]}
CLASSES |= {"preservation__share": 1.0}


@pytest.fixture
def kim(character: Path) -> Path:
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
    built = encode.build(family, examples, config, mute)
    batches = [built.at(step, 0) for step in range(88)]
    captions = Counter(batch.captions[0] for batch in batches)
    kims = [text for text in captions if contains_trigger(text, "kmx2")]
    assert all(contains_trigger(text, "rin") for text in captions if text not in kims)
    assert all("kim's" in text for text in kims if text != "kmx2")
    assert "kmx2, kim's hat, rin" in kims, "an image of both has both words"
    assert 8 < captions["rin"] < 26, "three in ten of 56"
    assert captions["kmx2"] > 3
    assert sum(captions[text] for text in kims) == 32, "twice as often, in each of four epochs"
    preserved = {text for batch in batches for text in batch.preserved}
    assert {"kim's picture 1", "kim's hat"} < preserved
    assert not any(contains_trigger(text, trigger) for text in preserved for trigger in ("rin", "kmx2"))


@pytest.mark.usefixtures("classes")
def test_each_subject_has_its_class_and_regularization_images(family: Family, kim: Path, tiny_sd: Path) -> None:
    (kim / "1.txt").unlink()
    config = settings(tiny_sd, **CLASSES, training__batch_size=1, captions__multiple=True)
    built = encode.build(family, dataset.read_subjects(config.taught), config, mute)
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
        encode.build(family, dataset.read_subjects(config.taught), config, mute)


@pytest.mark.usefixtures("kim")
def test_a_run_of_two_subjects_names_both(tiny_sd: Path) -> None:
    run = finished(tiny_sd, **SUBJECTS, training__steps=1)
    assert reader.read(run.export).metadata["modelspec.trigger_phrase"] == "rin, kmx2"
    assert "do not show the shapes" not in str(runs.look(run).state.warnings), "of a prompt that is no caption"
