"""Settings: one schema, unknown keys refused by name, everything written out and read back."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from trainer import config, schema
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig, adjustments
from trainer.data.dataset import Example
from trainer.errors import UserError

SMALL: dict[str, Any] = {"name": "rin", "dataset": "rin"}
BASES = ["micro", *FAMILIES]


def from_preset(kind: str, base: str, **changes: object) -> TrainConfig:
    model = {"base": "micro"} if base == "micro" else {"base": "x/y", "family": base}
    return config.build(SMALL | {"preset": kind, "model": model} | changes)


def sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    every = [section]
    for info in section.model_fields.values():
        for part in schema.sections(info.annotation):
            every += sections(part)
    return every


def test_every_number_has_bounds() -> None:
    for section in sections(TrainConfig):
        for name, info in section.model_fields.items():
            if info.annotation in (int, float) and section is not config.Record:
                assert info.metadata, f"{section.__name__}.{name} has no bounds"


@settings(max_examples=30)
@given(
    rank=st.integers(1, 512),
    rate=st.floats(1e-8, 1.0),
    prompts=st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="-")), max_size=4),
    kind=st.sampled_from(["constant", "cosine"]),
)
def test_a_config_survives_its_file(rank: int, rate: float, prompts: list[str], kind: str) -> None:
    data = {"adapter": {"rank": rank}, "optimizer": {"learning_rate": rate}, "schedule": {"kind": kind}}
    made = config.build(SMALL | data | {"preview": {"prompts": prompts}})
    assert config.build(tomllib.loads(config.dump(made))) == made


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"training": {"step": 3}}, "training.step is not a setting (did you mean training.steps?)"),
        ({"optimiser": {}}, "optimiser is not a setting (did you mean optimizer?)"),
        ({"name": "$(touch x)"}, "letters, digits"),
        ({"training": {"further_resolutions": [100]}}, "training.further_resolutions: should be a multiple of 64"),
        ({"training": {"further_resolutions": [64, 64]}}, "training.further_resolutions: each must be lower"),
        ({"training": {"further_resolutions": [128]}}, "lower than the resolution, 128"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate"),
        ({"training": {"resolution": 512}}, "micro draws 128 x 128"),
        ({"held_out": {"patience": 3}}, "held_out.patience: no images are held out"),
        ({"optimizer": {"kind": "schedule-free"}}, "schedule.kind: a schedule-free optimizer needs the constant"),
        ({"optimizer": {"kind": "muon"}, "adapter": {"dora": True}}, "adapter.dora: Muon trains matrices only"),
        ({"optimizer": {"kind": "muon"}, "adapter": {"targets": "conv"}}, "adapter.targets: Muon trains matrices only"),
        ({"adapter": {"ranks": ["up_blocks"]}}, "'up_blocks' should be like up_blocks.1 = 32"),
        ({"adapter": {"ranks": ["up_blocks = 0"]}}, "with a rank of 1 to 512"),
        ({"objective": {"min_timestep": 500, "max_timestep": 100}}, "min_timestep: is above"),
        ({"training": {"min_snr_gamma": 5.0}}, "did you mean objective.min_snr_gamma?"),
        ({"training": {"cards": "a"}}, "training.cards: should be numbers of cards, such as 0,2"),
        ({"training": {"cards": "0,2,0"}}, "training.cards: names a card twice"),
        ({"training": {"cards": "0", "devices": 2}}, "training.cards: there are fewer than devices (2)"),
        ({"training": {"cards": "0,1,2", "batch_size": 2}}, "training.cards: too many for a batch of 2"),
    ],
)
def test_wrong_settings_are_refused_by_name(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build(SMALL | data)
    assert words in caught.value.message
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("kind", get_args(config.Preset))
@pytest.mark.parametrize("base", BASES)
def test_each_preset_is_valid(base: str, kind: str) -> None:
    made = from_preset(kind, base)
    assert made.training.resolution == {"micro": 128, "sd15": 512, "sd21": 512}.get(base, 1024)
    assert bool(made.preservation.share) == (kind != "plain")
    assert bool(made.captions.dropout) == (kind != "plain" and made.training.text_encoder)
    assert made.preservation.share * made.training.batch_size * made.training.gradient_accumulation <= 2
    assert "" not in made.preservation.prompts, "guidance leads away from it"
    if kind == "plain":  # as in the documents of kohya-ss/sd-scripts on each family; micro has five times XL's rate
        values = (made.adapter.rank, made.adapter.alpha, made.optimizer.model_dump()["learning_rate"])
        assert values == {"micro": (32, 16.0, 5e-4), "sdxl": (32, 16.0, 1e-4)}.get(base, (16, 1.0, 1e-4))
        assert adjustments.planned_steps(made.training, 16) == 10 * 10 * 16, "ten epochs of ten repeats"
    names = {*get_args(config.Preset), *(f"{name}-{preset}" for name in BASES for preset in get_args(config.Preset))}
    assert {path.stem for path in config.PRESETS.iterdir()} <= names


def test_assignments_override() -> None:
    data = config.override(dict(SMALL), ["training.steps=12", "trigger=rin person", 'preview.prompts=["a, b"]'])
    made = config.build(data)
    assert (made.training.steps, made.trigger, made.preview.prompts) == (12, "rin person", ("a, b",))
    with pytest.raises(UserError, match="not an assignment"):
        config.override({}, ["steps"])


@pytest.mark.parametrize(
    ("assignment", "cards", "devices"),
    [("", "", 0), ("0", "0", 1), ("0,2", "0,2", 2), ("' 0, 2 '", "0,2", 2), ("''", "", 0), ("10,0", "10,0", 2)],
)
def test_cards_are_named_by_their_numbers(assignment: str, cards: str, devices: int) -> None:
    data = config.override(SMALL, [f"training.cards={assignment}"] if assignment else [])
    training = config.build(data).training
    assert (training.cards, training.wanted_devices) == (cards, devices)
    if devices:
        assert config.build(config.merge(data, {"training": {"devices": 1}})).training.wanted_devices == 1


def test_steps_and_rank_from_the_number_of_pictures(tmp_path: Path) -> None:
    training = config.build(SMALL).training
    assert adjustments.planned_steps(training, 1) == math.ceil(training.exposures / training.batch_size)
    assert adjustments.planned_steps(training, 16) == math.ceil(4 * training.exposures / training.batch_size)
    assert adjustments.planned_steps(training.model_copy(update={"steps": 3}), 16) == 3
    alone, together = (adjustments.planned_steps(training, 14 * count, count) for count in (1, 2))
    assert together == pytest.approx(2 * alone, abs=1), "two subjects of 14 images each"
    real = SMALL | {"model": {"base": str(tmp_path)}}
    usual, own = (config.build({**real, "adapter": {"rank": rank}}).adapter for rank in (0, 3))
    assert [adjustments.planned_rank(usual, count) for count in (4, 5, 30, 31)] == [8, 16, 16, 32]
    assert adjustments.planned_rank(own, 31) == 3
    made = config.build(config.override(dict(SMALL), ["held_out.share=0.1"]))
    examples = [Example(tmp_path / f"{number % 4}.png", "", 64, 64) for number in range(12)]
    assert adjustments.trained_count(made, examples) == 9, "three repeats of an image are held out with it"
    complete = adjustments.complete(made, 9)
    assert complete.training.steps == adjustments.planned_steps(made.training, 9)
    assert (complete.adapter.rank, adjustments.complete(complete, 100)) == (16, complete), "what is there stays"


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b"[model]\nbase = 'C:\\m'\nseed = \"C:\\m\""])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.toml is not a TOML file") as caught:
        config.load(tmp_path / "c.toml")
    assert ("single quotes" in caught.value.remedy) == (b"C:" in content)
    for path, words in ((tmp_path / "absent.toml", "no file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=words):
            config.load(path)


@pytest.mark.parametrize(
    ("training", "rate"),
    [({}, 3e-4), ({"batch_size": 1}, 1.5e-4), ({"batch_size": 16}, 6e-4), ({"accumulation": 4}, 6e-4)],
)
def test_a_presets_rate_follows_the_batch(tmp_path: Path, training: dict[str, int], rate: float) -> None:
    def rate_of(**changes: object) -> float:
        data = SMALL | {"model": {"base": str(tmp_path)}, "training": training}
        return config.build(data | changes).optimizer.learning_rate

    assert rate_of() == pytest.approx(rate)
    assert rate_of(optimizer={"learning_rate": 1e-4}) == 1e-4, "an explicit rate is not scaled"
    assert rate_of(preset="plain") == 1e-4, "that of plain LoRA is documented"
    assert rate_of(optimizer={"kind": "lion"}) == 2e-5, "the preset's rate is AdamW's"


@pytest.mark.parametrize("folder", ["/home/anna/models/", "C:\\Users\\anna\\models\\", "\\\\nas\\anna\\"])
def test_no_path_is_published(folder: str) -> None:
    model = {"base": "fox.safetensors", "vae": "vae.safetensors", "training_adapter": "turbo.safetensors"}
    names = {"model": model, "regularization": {"dataset": "people"}}
    there = {section: {key: folder + name for key, name in values.items()} for section, values in names.items()}
    public = config.without_paths(config.build({"name": "rin", "dataset": f"{folder}rin", **there}))
    assert "anna" not in config.dump(public)
    assert public == config.without_paths(public) == config.build({"name": "rin", "dataset": "rin", **names})
    model = {"base": "anna/fox", "training_adapter": "anna/fox/turbo.safetensors"}
    public = config.without_paths(config.build({"name": "rin", "dataset": "rin", "model": model})).model
    assert {"base": public.base, "training_adapter": public.training_adapter} == model


def test_machines_of_a_run_keep_their_own_files() -> None:
    def on(folder: str, seed: int) -> TrainConfig:
        files = {section: {name: f"{folder}/{name}" for name in names} for section, names in config.FILES.items()}
        return config.build({"name": "rin", "dataset": f"{folder}/rin", "seed": seed, **files})

    assert config.FILES["adapter"] == {"start": "file"}
    assert config.with_files_of(on("/there", seed=7), on("/here", seed=8)) == on("/here", seed=7)


FURTHER = (([512], 768, None), ([896, 512], 768, [512]), ([768], 768, []), ([704, 640], 768, None))


@pytest.mark.parametrize(
    ("side", "further", "lower", "kept"),
    [(512, [], 384, None), (320, [], 256, None), (256, [], None, None), *((1024, *more) for more in FURTHER)],
)
def test_what_does_not_fit_is_made_smaller(
    side: int, further: list[int], lower: int | None, kept: list[int] | None
) -> None:
    data = SMALL | {"model": {"base": "a/b"}, "training": {"resolution": side, "further_resolutions": further}}
    change = adjustments.lower_resolution(config.build(data))
    expected = {"training.resolution": lower, "training.further_resolutions": kept}
    assert change == {path: value for path, value in expected.items() if value is not None}
    changed = config.override(data, [f"{path}={json.dumps(value)}" for path, value in change.items()])
    assert config.build(changed).training.resolution == (lower or side)


def test_micro_stays_and_what_is_unstable_is_made_calmer() -> None:
    settings = config.build(SMALL | {"optimizer": {"learning_rate": 0.003}})
    assert adjustments.lower_resolution(settings) == {}
    assert adjustments.lower_learning_rate(settings) == {"optimizer.learning_rate": 0.00075}
