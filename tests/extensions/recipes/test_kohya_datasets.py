"""Datasets of sd-scripts as subjects, and settings of ours as its configs: what comes back, and what is named."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from typer.testing import CliRunner

from limner_extensions.recipes import kohya, reading
from limner_extensions.recipes.draft import Recipe
from limner_extensions.recipes.kohya import writing
from limner_extensions.recipes.values import flat, words
from tests.extensions.recipes.examples import GUI, SCRIPT, toml
from tests.unit.data.test_dataset import png
from trainer import config
from trainer.cli.commands import app
from trainer.data.dataset import Subject
from trainer.errors import UserError

ANY = {"name": "x", "dataset": "x", "model": {"base": "limner/any"}}
KIM = {"image_dir": "/data/kim", "num_repeats": 10, "class_tokens": "kmx2 girl"}
LEO = {"image_dir": "/data/leo", "num_repeats": 5, "class_tokens": "tuvani boy", "keep_tokens": 1}
TIM = {"image_dir": "/data/tim", "num_repeats": 5, "class_tokens": "tuvani boy"}
GIRLS = {"image_dir": "/data/girls", "class_tokens": "girl", "is_reg": True}
BOYS = {"image_dir": "/data/boys", "class_tokens": "boy", "is_reg": True, "num_repeats": 2}
GENERAL = '\n[general]\nshuffle_caption = true\nkeep_tokens = 1\ncaption_extension = ".txt"\nenable_bucket = true\n'


def table(header: str, values: dict[str, Any]) -> str:
    return f"{header}\n{toml(values)}\n"


def of(*subsets: dict[str, Any], start: str = GENERAL) -> str:
    text = start + table("[[datasets]]", {"resolution": 768, "batch_size": 2})
    return text + "".join(table("[[datasets.subsets]]", subset) for subset in subsets)


def read(tmp_path: Path, text: str) -> tuple[config.TrainConfig, Recipe]:
    """Read datasets, and check that each setting is taken or named."""
    path = tmp_path / "datasets.toml"
    path.write_text(text, encoding="utf-8")
    recipe = reading.read(path, datasets=True)
    notes = " ".join(recipe.notes)
    assert not [key for key in kohya.lifted(tomllib.loads(text)) if key not in recipe.mapped and key not in notes]
    return config.build(config.merge(ANY, recipe.settings)), recipe


def test_a_subset_becomes_a_subject_or_regularization_images(tmp_path: Path) -> None:
    settings, recipe = read(tmp_path, of(KIM, GIRLS, LEO, BOYS))
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
        (
            [KIM | {"num_repeats": 3}, LEO | {"num_repeats": 2}],
            [Subject("/data/leo", "tuvani", 1, "boy"), Subject("/data/kim", "kmx2", 2, "girl")],
            "Repeats of 2 and 3 become 1 and 2",
        ),
        (
            [KIM, LEO | {"num_repeats": 10, "keep_tokens": 2, "flip_aug": True}],
            [Subject("/data/kim", "kmx2", 1, "girl"), Subject("/data/leo", "tuvani", 1, "boy")],
            "differ in keep_tokens, flip_aug",
        ),
        ([{"image_dir": "a", "caption_extension": ".cap"}], [Subject("a", "")], "caption_extension = '.cap'"),
        ([KIM, {"metadata_file": "m.json", "image_dir": "b"}], [Subject("/data/kim", "kmx2", 1, "girl")], "m.json"),
    ],
)
def test_what_has_no_counterpart_is_named(
    tmp_path: Path, subsets: list[dict[str, Any]], taught: list[Subject], note: str
) -> None:
    settings, recipe = read(tmp_path, of(*subsets))
    assert list(settings.taught) == taught
    assert re.search(note, " ".join(recipe.notes))


def at(*sides: object, subsets: tuple[dict[str, Any], ...] = (KIM, GIRLS, TIM), **others: object) -> str:
    datasets = [table("[[datasets]]", {"resolution": side, "batch_size": 2} | others) for side in sides]
    return "".join(text + "".join(table("[[datasets.subsets]]", subset) for subset in subsets) for text in datasets)


@pytest.mark.parametrize("start", ["", GENERAL, toml(SCRIPT) + GENERAL])
def test_subsets_at_several_sizes_are_trained_at_each(tmp_path: Path, start: str) -> None:
    settings, recipe = read(tmp_path, start + at(512, 1024, [768, 768]))
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
    settings, recipe = read(tmp_path, text)
    assert settings.training.resolutions == resolutions
    assert note in " ".join(recipe.notes)


def test_several_resolutions_go_to_sd_scripts_and_back(tmp_path: Path) -> None:
    training = {"resolution": 512, "further_resolutions": [256, 128]}
    settings = config.build(ANY | {"dataset": "/data/kim", "trigger": "kmx2", "training": training})
    exported = writing.export(settings, datasets=True)
    assert not any("further_resolutions" in note for note in exported.notes)
    assert any("further_resolutions" in note for note in writing.export(settings).notes)
    assert tomllib.loads(exported.text)["min_bucket_reso"] == 128
    assert [dataset["resolution"] for dataset in tomllib.loads(exported.datasets)["datasets"]] == [512, 256, 128]
    again, _recipe = read(tmp_path, exported.text + exported.datasets)
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
    settings, recipe = read(tmp_path, of(*subsets, start=start))
    assert settings.training.steps == 4 * 50  # of (3 x 10 + 4 x 5) images, and as many girls, two a batch
    assert settings.adapter.rank == 16
    _settings, recipe = read(tmp_path, of(KIM, LEO, start=start))
    assert any("4 epochs" in note for note in recipe.notes)
    path = tmp_path / "sizes.toml"
    path.write_text(toml(SCRIPT | {"max_train_epochs": 4}) + "\n" + at(512, 1024, subsets=(KIM,)), encoding="utf-8")
    assert reading.read(path, 6).settings["training"]["steps"] == 4 * 2 * 6 * 10 / 2, "each image at each size"


def test_the_commands_take_datasets_there_and_back(character: Path, tmp_path: Path) -> None:
    def limner(*arguments: object) -> None:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.exception

    out, again = tmp_path / "a.toml", tmp_path / "again.toml"
    datasets = tmp_path / "datasets.toml"
    datasets.write_text(of(KIM, GIRLS, LEO, BOYS, start=toml(SCRIPT) + GENERAL), encoding="utf-8")
    limner("import-recipe", datasets, "--out", out)
    first = config.load(out)
    assert first.dataset == "/data/leo"
    limner("export-recipe", out, "--out", tmp_path / "k.toml", "--datasets", tmp_path / "d.toml")
    subsets = tomllib.loads((tmp_path / "d.toml").read_text())["datasets"][0]["subsets"]
    assert [(subset["image_dir"], subset["num_repeats"], subset["class_tokens"]) for subset in subsets] == [
        ("/data/leo", 1, "tuvani boy"),
        ("/data/boys", 1, "boy"),
        ("/data/kim", 2, "kmx2 girl"),
        ("/data/girls", 1, "girl"),
    ]
    limner("import-recipe", tmp_path / "d.toml", "--out", again)
    assert config.load(again).taught == first.taught
    exported = writing.export(first, datasets=True)
    assert not any("class_word" in note or "subjects" in note for note in exported.notes)
    assert "--dataset_config" in exported.text
    assert any("class_word" in note for note in writing.export(first).notes)
    recipe = tmp_path / "Mira's recipe.json"
    recipe.write_text(json.dumps(GUI | {"pretrained_model_name_or_path": "owner/name"}), encoding="utf-8")
    limner("import-recipe", recipe, "--dataset", character, "--out", tmp_path / "mira.toml")
    mira = config.load(tmp_path / "mira.toml")
    assert (mira.name, mira.dataset) == ("mira", str(character))
    assert mira.training.steps == 10 * 7  # of 14 images, two a batch
    assert tomllib.loads(CliRunner().invoke(app, ["import-recipe", str(recipe)]).stdout)["name"] == "Mira-s-recipe"
    output = CliRunner().invoke(app, ["check", str(tmp_path)]).output
    assert "d.toml names /data/leo --trigger tuvani --class boy --regularization /data/boys, /data/kim" in output
    assert "k.toml" not in output


PLAIN: dict[str, Any] = {
    "name": "x",
    "dataset": "x",
    "model.base": "owner/name",
    "training.steps": 400,
    "training.text_encoder": True,
    "training.precision": "bf16",
    "adapter.rank": 16,
    "preservation.share": 0.0,
    "captions.trigger_only": 0.0,
}
# As in docs/sdxl_train_network.md, docs/sd3_train_network.md and docs/flux_train_network.md of sd-scripts.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "sdxl": {"network_module": "networks.lora", "network_dim": 32, "network_alpha": 16},
    "sd3": {
        "network_module": "networks.lora_sd3",
        "network_dim": 16,
        "network_alpha": 1,
        "weighting_scheme": "sigma_sqrt",
    },
    "flux": {
        "network_module": "networks.lora_flux",
        "network_dim": 16,
        "network_alpha": 1,
        "guidance_scale": 1.0,
        "timestep_sampling": "flux_shift",
        "model_prediction_type": "raw",
    },
}
# Not part of what sd-scripts could do: of the run, or of the machine.
NOT_SAID = words("""
    record preview training.exposures training.devices training.cards name dataset captions.shuffles checkpoint.minutes
    checkpoint.keep checkpoint.adapters export
""")


def built(changes: dict[str, Any]) -> config.TrainConfig:
    return config.build(config.nested(PLAIN | changes))


def check_read_back(tmp_path: Path, settings: config.TrainConfig, text: str, notes: tuple[str, ...]) -> None:
    """Check that a config of sd-scripts says what the settings do, but for what notes name."""
    file, known = tmp_path / "kohya.toml", PLAIN | {"model.family": settings.model.family}
    file.write_text(text, encoding="utf-8")
    again = config.build(config.merge(config.nested(known), reading.read(file).settings))
    after = flat(again.model_dump(mode="json"))
    for path, value in flat(settings.model_dump(mode="json")).items():
        same = after.get(path) == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)
        assert same or path.startswith(NOT_SAID) or any(path in note for note in notes), path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "adapter.rank": 8,
            "adapter.alpha": 4.0,
            "adapter.targets": "conv",
            "adapter.lora_plus_ratio": 4.0,
            "optimizer.kind": "adamw8bit",
            "optimizer.beta1": 0.8,
            "optimizer.weight_decay": 0.1,
            "seed": 7,
        },
        {
            "adapter.rank": 8,
            "adapter.alpha": 4.0,
            "adapter.targets": "conv",
            "adapter.ranks": ["conv1 = 2", "conv2 = 2", "samplers.0.conv = 2"],
        },
        {
            "adapter.dropout": 0.1,
            "adapter.rank_dropout": 0.2,
            "model.clip_skip": 2,
            "schedule.kind": "constant",
            "schedule.warmup": 0.1,
            "held_out.share": 0.1,
            "held_out.every": 20,
            "adapter.start": "first.safetensors",
        },
        {"adapter.dora": True, "adapter.targets": "attention", "subjects": ["kim --trigger kmx2"], "trigger": "rinx"},
        {"adapter.dora": True, "adapter.rslora": True, "optimizer.kind": "adafactor", "optimizer.learning_rate": 3e-4},
        {
            "adapter.kind": "loha",
            "adapter.rank": 4,
            "adapter.alpha": 4.0,
            "optimizer.kind": "lion",
            "optimizer.learning_rate": 2e-5,
            "training.text_encoder": False,
        },
        {
            "adapter.kind": "lokr",
            "adapter.rank": 4,
            "adapter.factor": 4,
            "optimizer.kind": "prodigy",
            "objective.loss_type": "scheduled-huber",
            "model.prediction_type": "v_prediction",
            "captions.dropout": 0.1,
            "captions.shuffle": True,
            "captions.keep_tokens": 2,
            "captions.tag_dropout": 0.2,
            "images.flip": True,
        },
        {"optimizer.kind": "prodigy-schedule-free", "optimizer.beta2": 0.98, "schedule.kind": "constant"},
        {
            "optimizer.kind": "came",
            "optimizer.beta3": 0.99,
            "schedule.kind": "linear",
            "schedule.min_lr_ratio": 0.0,
            "captions.multiple": True,
            "captions.max_token_length": 225,
            "training.batch_size": 3,
            "training.gradient_accumulation": 2,
            "training.resolution": 768,
            "training.max_grad_norm": 0.0,
        },
        {
            "optimizer.kind": "ademamix",
            "optimizer.beta1": 0.8,
            "optimizer.alpha": 3.0,
            "schedule.kind": "cosine",
            "schedule.min_lr_ratio": 0.1,
            "schedule.warmup": 0.03,
            "objective.weighting": "min-snr",
            "objective.min_snr_gamma": 3.0,
            "objective.noise_offset": 0.05,
        },
        {
            "optimizer.kind": "muon",
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 0.1,
            "schedule.kind": "cosine",
            "schedule.min_lr_ratio": 0.0,
            "schedule.cycles": 3,
            "objective.weighting": "debiased",
            "objective.input_perturbation": 0.1,
            "objective.min_timestep": 50,
        },
        {"optimizer.kind": "schedule-free", "schedule.kind": "constant", "schedule.warmup": 0.0},
        {
            "schedule.kind": "warmup-stable-decay",
            "schedule.cooldown": 0.3,
            "schedule.min_lr_ratio": 0.1,
            "objective.loss_type": "huber",
            "objective.huber_c": 0.2,
            "objective.max_timestep": 900,
        },
        {
            "adapter.ranks": ["up_blocks = 8"],
            "objective.weighting": "p2",
            "objective.timestep_sampling": "logit-normal",
            "schedule.kind": "linear",
            "schedule.min_lr_ratio": 0.2,
            "regularization.dataset": "reg",
            "class_word": "girl",
            "model.weights": "nf4",
        },
    ],
    ids=str,
)
def test_what_it_says_comes_back_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = built(changes)
    exported = writing.export(settings, images=20)
    check_read_back(tmp_path, settings, exported.text, exported.notes)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective.timestep_sampling": "logit-normal", "adapter.dora": True, "adapter.targets": "attention"},
        {"objective.timestep_sampling": "logit-normal", "objective.logit_mean": -1.15, "objective.logit_std": 0.8},
        {"objective.timestep_sampling": "mode", "objective.mode_scale": 0.7, "adapter.targets": "attention"},
        {"adapter.blocks": ["single_transformer_blocks"], "training.text_encoder": False, "model.guidance": 3.5},
        {"adapter.kind": "lokr", "adapter.factor": 4, "objective.loss_type": "huber", "objective.min_timestep": 50},
        {"model.clip_skip": 2, "captions.max_token_length": 225, "training.resolution": 512},
    ],
    ids=str,
)
def test_flow_matching_comes_back_as_it_was(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    settings = built({"training.resolution": 1024, "model.family": family, **changes})
    exported = writing.export(settings, images=20)
    values = tomllib.loads(exported.text)
    assert f"accelerate launch {family}_train_network.py" in exported.text
    if family == "flux":
        assert "--clip_l ... --t5xxl ... --ae ..." in exported.text
        assert (values["guidance_scale"], values["model_prediction_type"]) == (settings.model.guidance, "raw")
    text = exported.text
    if values["network_module"] == "lycoris.kohya":  # the family then follows from the path of one of its parts
        mark = {"sd3": "clip_g", "flux": "ae"}[family]
        text += f'\n{mark} = "part.safetensors"'
    check_read_back(tmp_path, settings, text, exported.notes)


@pytest.mark.parametrize("targets", ["attention", "attention+ff"])
@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"timestep_sampling": "logit-normal", "logit_mean": -1.1, "logit_std": 0.8},
        {"timestep_sampling": "mode", "mode_scale": 0.7},
    ],
    ids=str,
)
def test_settings_for_anima_come_back_as_they_were(tmp_path: Path, objective: dict[str, Any], targets: str) -> None:
    changes = {"training.resolution": 1024, "model.family": "anima", "training.text_encoder": False}
    settings = built(changes | {"adapter.targets": targets} | {f"objective.{key}": objective[key] for key in objective})
    exported = writing.export(settings, images=20)
    assert "accelerate launch anima_train_network.py" in exported.text
    assert "--qwen3 ... --vae ..." in exported.text
    check_read_back(tmp_path, settings, exported.text, exported.notes)


@pytest.mark.parametrize("changes", [{"kind": "lokr", "factor": 4}, {"dora": True}])
def test_what_lycoris_does_not_find_is_not_written(changes: dict[str, Any]) -> None:
    settings = {"training.resolution": 1024, "model.family": "anima", "training.text_encoder": False}
    with pytest.raises(UserError, match="LyCORIS, which does not find the blocks"):
        writing.export(built(settings | {f"adapter.{key}": value for key, value in changes.items()}))


def test_what_it_cannot_say_of_flow_matching_is_named() -> None:
    def notes(family: str, **changes: Any) -> str:  # noqa: ANN401 - any settings
        settings = {"training.resolution": 1024, "model.family": family, **changes}
        return " ".join(writing.export(built(settings)).notes)

    assert "modulation" in notes("flux")  # whose single blocks have more layers
    assert "modulation" not in notes("sd3")  # whose other layers are given a rank of 0
    assert "split_qkv" in notes("flux")  # at which older versions of its script stop
    assert "split_qkv" not in notes("sd3") + notes("anima", **{"training.text_encoder": False})
    assert "square of the noise level" in notes("sd3", **{"objective.timestep_sampling": "logit-normal"})
    assert "divides by the noise level" in notes("sd3", **{"objective.timestep_sampling": "uniform"})
    assert "before they are scaled" in notes("sd3", **{"objective.min_timestep": 50})
    assert "objective.min_timestep = 50" in notes("flux", **{"objective.min_timestep": 50})
    assert "adapter.blocks" in notes("flux", **{"adapter.blocks": ["transformer_blocks.0."]})


def test_automatic_values_are_written_out_and_others_named() -> None:
    automatic = {"adapter.rank": 0, "training.steps": 0, "training.exposures": 100}
    values = tomllib.loads(writing.export(built(automatic), images=16).text)
    assert (values["network_dim"], values["max_train_steps"]) == (16, 100)  # 100 * sqrt(16) images, 4 a step
    scaled = tomllib.loads(writing.export(built({"adapter.rslora": True, "adapter.rank": 16})).text)
    assert scaled["network_alpha"] / 16 == 16 / 16**0.5  # alpha / rank there is alpha / sqrt(rank) here
    plain = " ".join(writing.export(built({})).notes)
    for changes, named in (
        ({"preservation.share": 0.5}, "preservation.weight"),
        ({"preview.prompts": ["a cat"]}, "preview.prompts"),
        ({"model.base": "micro", "training.resolution": 128}, "micro"),
        ({"training.steps": 0}, "max_train_steps"),
        ({"optimizer.kind": "muon"}, "which Muon refuses"),
    ):
        assert named in " ".join(writing.export(built(changes)).notes)
        assert named == "micro" or named not in plain


@pytest.mark.parametrize("family", DOCUMENTED)
def test_plain_lora_is_what_documented_options_say(tmp_path: Path, family: str) -> None:
    options = {"learning_rate": 1e-4, "optimizer_type": "AdamW", "lr_scheduler": "constant", **DOCUMENTED[family]}
    file = tmp_path / "kohya.toml"
    file.write_text(tomlkit.dumps({**options, "resolution": 1024, "max_train_epochs": 10}), encoding="utf-8")
    base = {"name": "x", "dataset": "x", "preset": "plain", "model": {"base": "owner/name", "family": family}}
    plain = config.build(base)
    again = config.build(config.merge(base, reading.read(file, images=16).settings))
    before, after = (flat(settings.model_dump(mode="json")) for settings in (plain, again))
    # A document leaves repeats open, and tags that are not shuffled have no order to keep.
    differing = {path for path, value in before.items() if after[path] != value}
    assert differing == {"training.steps", "captions.keep_tokens"}
    written = tomllib.loads(writing.export(plain, images=16).text)
    assert {key: written[key] for key in options} == options


def test_what_sd_scripts_needs_is_written_and_no_path() -> None:
    for side, smallest, largest in ((128, 128, 1024), (512, 256, 1024), (1024, 256, 2048)):
        values = tomllib.loads(writing.export(built({"training.resolution": side})).text)
        assert values["resolution"] == f"{side},{side}"
        assert (values["min_bucket_reso"], values["max_bucket_reso"]) == (smallest, largest)
        assert values["caption_extension"] == ".txt"  # its own is .caption

    paths = {"model.base": "/home/me/models/base.safetensors", "adapter.start": "/home/me/first.safetensors"}
    exported = writing.export(built(paths))
    assert 'network_weights = "first.safetensors"' in exported.text
    assert 'pretrained_model_name_or_path = "base.safetensors"' in exported.text
    assert "/home" not in exported.text
