"""Datasets of sd-scripts as subjects of a run: what each subset becomes, what is named, and the way back."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from limner_extensions.recipes import kohya, kohya_export, reading
from limner_extensions.recipes.draft import Recipe, flat
from tests.extensions.recipes.examples import GUI, SCRIPT, toml
from tests.unit.data.test_dataset import png
from trainer import config
from trainer.cli.commands import app
from trainer.data.dataset import Subject

ANY = {"name": "x", "dataset": "x", "model": {"base": "limner/any"}}
KIM = {"image_dir": "/data/kim", "num_repeats": 10, "class_tokens": "kmx2 girl"}
LEO = {"image_dir": "/data/leo", "num_repeats": 5, "class_tokens": "tuvani boy", "keep_tokens": 1}
TIM = {"image_dir": "/data/tim", "num_repeats": 5, "class_tokens": "tuvani boy"}
GIRLS = {"image_dir": "/data/girls", "class_tokens": "girl", "is_reg": True}
BOYS = {"image_dir": "/data/boys", "class_tokens": "boy", "is_reg": True, "num_repeats": 2}
GENERAL = '\n[general]\nshuffle_caption = true\nkeep_tokens = 1\ncaption_extension = ".txt"\nenable_bucket = true\n'


def table(header: str, values: dict[str, Any]) -> str:
    return f"{header}\n{toml(values)}\n"


def written(tmp_path: Path, *subsets: dict[str, Any], start: str = GENERAL) -> Path:
    path = tmp_path / "datasets.toml"
    text = start + table("[[datasets]]", {"resolution": 768, "batch_size": 2})
    path.write_text(text + "".join(table("[[datasets.subsets]]", subset) for subset in subsets), encoding="utf-8")
    return path


def read(tmp_path: Path, *subsets: dict[str, Any], start: str = GENERAL) -> tuple[config.TrainConfig, Recipe]:
    """Read subsets, and check that each setting is taken or named."""
    path = written(tmp_path, *subsets, start=start)
    recipe = reading.read(path, datasets=True)
    notes = " ".join(recipe.notes)
    lost = [
        key for key in kohya.lifted(tomllib.loads(path.read_text())) if key not in recipe.mapped and key not in notes
    ]
    assert not lost
    return config.build(config.merge(ANY, recipe.settings)), recipe


def test_a_subset_becomes_a_subject_or_regularization_images(tmp_path: Path) -> None:
    settings, recipe = read(tmp_path, KIM, GIRLS, LEO, BOYS)
    assert settings.taught == (
        Subject("/data/leo", "tuvani", 1, "boy", "/data/boys"),  # repeated least, so that the other is relative to it
        Subject("/data/kim", "kmx2", 2, "girl", "/data/girls"),
    )
    assert settings.regularization.share == 0.5
    assert (settings.captions.shuffle, settings.captions.keep_tokens, settings.training.resolution) == (True, 1, 768)
    assert recipe.settings["training"] == {"batch_size": 2, "resolution": 768}, "the file says no more of the training"
    assert "adapter" not in recipe.settings
    assert any("tuvani (boy)" in note and "in front of each caption" in note for note in recipe.notes)
    assert not any("no counterpart" in note for note in recipe.notes)


@pytest.mark.parametrize(
    ("subsets", "taught", "note"),
    [
        ([{"image_dir": "a"}], [Subject("a", "")], ""),
        ([{"image_dir": "a", "class_tokens": "girl"}, GIRLS], [Subject("a", "", 1, "girl", "/data/girls")], ""),
        ([KIM, GIRLS, BOYS], [Subject("/data/kim", "kmx2", 1, "girl", "/data/girls")], "no counterpart.*/data/boys"),
        ([KIM, BOYS], [Subject("/data/kim", "kmx2", 1, "girl", "/data/boys")], "no counterpart.*class_tokens = 'boy'"),
        ([KIM, {"image_dir": "b"}], [Subject("/data/kim", "kmx2", 1, "girl")], "Left out: b[.]"),
        ([KIM, LEO | {"class_tokens": "girl"}], [Subject("/data/kim", "kmx2", 1, "girl")], "Left out.*/data/leo"),
        ([KIM, LEO | {"image_dir": "x --trigger y"}], [Subject("/data/kim", "kmx2", 1, "girl")], "Left out"),
        ([{"image_dir": "a", "class_tokens": "girl cute girl"}], [Subject("a", "girl")], ""),
        ([KIM | {"num_repeats": 0}, LEO], [Subject("/data/leo", "tuvani", 1, "boy")], ""),
        ([KIM | {"num_repeats": 3}, LEO | {"num_repeats": 2}],
         [Subject("/data/leo", "tuvani", 1, "boy"), Subject("/data/kim", "kmx2", 2, "girl")],
         "Repeats of 2 and 3 become 1 and 2"),
        ([KIM, LEO | {"num_repeats": 10, "keep_tokens": 2, "flip_aug": True}],
         [Subject("/data/kim", "kmx2", 1, "girl"), Subject("/data/leo", "tuvani", 1, "boy")],
         "differ in keep_tokens, flip_aug"),
        ([{"image_dir": "a", "caption_extension": ".cap"}], [Subject("a", "")], "caption_extension = '.cap'"),
        ([KIM, {"metadata_file": "m.json", "image_dir": "b"}], [Subject("/data/kim", "kmx2", 1, "girl")], "m.json"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(
    tmp_path: Path, subsets: list[dict[str, Any]], taught: list[Subject], note: str
) -> None:
    settings, recipe = read(tmp_path, *subsets)
    assert list(settings.taught) == taught
    assert re.search(note, " ".join(recipe.notes))


def read_text(tmp_path: Path, text: str) -> tuple[config.TrainConfig, Recipe]:
    path = tmp_path / "datasets.toml"
    path.write_text(text, encoding="utf-8")
    recipe = reading.read(path, datasets=True)
    return config.build(config.merge(ANY, recipe.settings)), recipe


def at(*sides: object, subsets: tuple[dict[str, Any], ...] = (KIM, GIRLS, TIM), **others: object) -> str:
    """Return datasets of the same subsets at several resolutions."""
    datasets = [table("[[datasets]]", {"resolution": side, "batch_size": 2} | others) for side in sides]
    return "".join(text + "".join(table("[[datasets.subsets]]", subset) for subset in subsets) for text in datasets)


@pytest.mark.parametrize("start", ["", GENERAL, toml(SCRIPT) + GENERAL])
def test_subsets_at_several_sizes_are_trained_at_each(tmp_path: Path, start: str) -> None:
    settings, recipe = read_text(tmp_path, start + at(512, 1024, [768, 768]))
    assert settings.training.resolutions == (1024, 768, 512)
    assert [subject.dataset for subject in settings.taught] == ["/data/tim", "/data/kim"]
    assert settings.taught[1].regularization == "/data/girls"
    notes = " ".join(recipe.notes)
    assert not re.search(r"datasets\.[1-9]", notes), "the others say the same again"
    assert "Left out" not in notes
    page = reading.read(tmp_path / "datasets.toml")
    assert flat(page.settings)["training.further_resolutions"] == [768, 512]
    assert "dataset" not in page.settings


@pytest.mark.parametrize(
    ("text", "resolutions", "note"),
    [
        (at(512) + at(1024, subsets=(KIM | {"num_repeats": 3}, GIRLS, TIM)), (512,), "datasets.1.resolution = 1024"),
        (at(512) + at("x"), (512,), "datasets.1.resolution = 'x'"),
        (at(512) + at(1024, batch_size=1), (1024, 512), "datasets.1.train_batch_size = 1"),
        (at(512) + at(1024, flip_aug=True), (1024, 512), "differ in flip_aug"),
        (at(512) + at([1024, 900]), (960, 512), "960, 512 pixels here; the recipe says 512, [1024, 900]"),
    ],
)
def test_datasets_that_differ_in_more_than_size_are_named(
    tmp_path: Path, text: str, resolutions: tuple[int, ...], note: str
) -> None:
    settings, recipe = read_text(tmp_path, text)
    assert settings.training.resolutions == resolutions
    assert note in " ".join(recipe.notes)


def test_several_resolutions_go_to_sd_scripts_and_back(tmp_path: Path) -> None:
    training = {"resolution": 512, "further_resolutions": [256, 128]}
    settings = config.build(ANY | {"dataset": "/data/kim", "trigger": "kmx2", "training": training})
    exported = kohya_export.export(settings, datasets=True)
    assert not any("further_resolutions" in note for note in exported.notes)
    assert any("further_resolutions" in note for note in kohya_export.export(settings).notes)
    assert tomllib.loads(exported.text)["min_bucket_reso"] == 128
    assert [dataset["resolution"] for dataset in tomllib.loads(exported.datasets)["datasets"]] == [512, 256, 128]
    again, _recipe = read_text(tmp_path, exported.text + exported.datasets)
    assert again.training.resolutions == (512, 256, 128)
    assert again.taught == settings.taught


def test_epochs_become_steps_where_the_folders_are(tmp_path: Path) -> None:
    folders = []
    for name, count in (("kim", 3), ("leo", 4), ("girls", 9)):
        folder = tmp_path / name
        folder.mkdir()
        folders.append(str(folder))
        for number in range(count):
            (folder / f"{number}.png").write_bytes(png((number, 0, 0)))
    start = toml(SCRIPT | {"max_train_epochs": 4}) + GENERAL
    subsets = [subset | {"image_dir": folder} for subset, folder in zip((KIM, LEO, GIRLS), folders, strict=True)]
    settings, recipe = read(tmp_path, *subsets, start=start)
    assert settings.training.steps == 4 * 50  # of (3 x 10 + 4 x 5) images, and as many girls, two a batch
    assert settings.adapter.rank == 16
    _settings, recipe = read(tmp_path, KIM, LEO, start=start)
    assert any("4 epochs" in note for note in recipe.notes)
    path = tmp_path / "sizes.toml"
    path.write_text(toml(SCRIPT | {"max_train_epochs": 4}) + "\n" + at(512, 1024, subsets=(KIM,)), encoding="utf-8")
    assert reading.read(path, 6).settings["training"]["steps"] == 4 * 2 * 6 * 10 / 2, "each image at each size"


def test_the_commands_take_datasets_there_and_back(character: Path, tmp_path: Path) -> None:
    def limner(*arguments: object) -> None:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.exception

    out, again = tmp_path / "a.toml", tmp_path / "again.toml"
    limner("import-recipe", written(tmp_path, KIM, GIRLS, LEO, BOYS, start=toml(SCRIPT) + GENERAL), "--out", out)
    first = config.load(out)
    assert first.dataset == "/data/leo"
    limner("export-recipe", out, "--out", tmp_path / "k.toml", "--datasets", tmp_path / "d.toml")
    subsets = tomllib.loads((tmp_path / "d.toml").read_text())["datasets"][0]["subsets"]
    assert [(subset["image_dir"], subset["num_repeats"], subset["class_tokens"]) for subset in subsets] == [
        ("/data/leo", 1, "tuvani boy"), ("/data/boys", 1, "boy"), ("/data/kim", 2, "kmx2 girl"),
        ("/data/girls", 1, "girl"),
    ]  # fmt: skip
    limner("import-recipe", tmp_path / "d.toml", "--out", again)
    assert config.load(again).taught == first.taught
    exported = kohya_export.export(first, datasets=True)
    assert not any("class_word" in note or "subjects" in note for note in exported.notes)
    assert "--dataset_config" in exported.text
    assert any("class_word" in note for note in kohya_export.export(first).notes)
    recipe = tmp_path / "Mira's recipe.json"
    recipe.write_text(json.dumps(GUI | {"pretrained_model_name_or_path": "owner/name"}), encoding="utf-8")
    limner("import-recipe", recipe, "--dataset", character, "--out", tmp_path / "mira.toml")
    mira = config.load(tmp_path / "mira.toml")
    assert (mira.name, mira.dataset, mira.training.steps) == (
        "mira",
        str(character),
        10 * 7,
    )  # of 14 images, two a batch
    assert tomllib.loads(CliRunner().invoke(app, ["import-recipe", str(recipe)]).stdout)["name"] == "Mira-s-recipe"
    output = CliRunner().invoke(app, ["check", str(tmp_path)]).output
    assert "d.toml names /data/leo --trigger tuvani --class boy --regularization /data/boys, /data/kim" in output
    assert "k.toml" not in output
