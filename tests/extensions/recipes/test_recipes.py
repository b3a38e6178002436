"""Recipes of other programs: nothing of a file is dropped silently, and what is mapped means the same."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import save_file

from limner_extensions.recipes import ai_toolkit, kohya, onetrainer, optimization, reading, sections
from limner_extensions.recipes.draft import Recipe
from limner_extensions.recipes.kohya import optimizer_args, writing
from limner_extensions.recipes.values import flat
from tests.extensions.recipes.examples import AI_TOOLKIT, GUI, ONE_TRAINER, RECIPES, SCRIPT, toml
from tests.hostile.test_fuzz import files, fuzz
from trainer import config
from trainer.base_models import layer_shapes
from trainer.config.adapter import CONVOLUTIONS, Lora
from trainer.errors import UserError
from trainer.foreign_text import MAX_SETTINGS
from trainer.optim.optimizers import ROWS, SECTIONS

__all__ = ["files"]

RANKS = sections.convolution_ranks(4)
ANY = {"name": "x", "dataset": "x", "model": {"base": "limner/any"}}


def read(tmp_path: Path, text: str, images: int = 0) -> Recipe:
    (path := tmp_path / "recipe.txt").write_text(text, encoding="utf-8")  # recognized by its content, not by its name
    return reading.read(path, images)


def built(recipe: Recipe) -> config.TrainConfig:
    return config.build(config.merge(ANY, recipe.settings))


def names(text: str) -> set[str]:
    """Return the names of all settings in a file, as the notes name them."""
    if text.startswith("{"):
        data = json.loads(text)
    elif "process:" in text:
        data = yaml.safe_load(text)
    else:
        data = tomllib.loads(text)
    if "adapter" in data or "config" in data or "training_method" in data:
        return {name.removeprefix("config.process.0.").removeprefix("config.") for name in flat(data)}
    return set(kohya.lifted(data))


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_dropped_silently(tmp_path: Path, name: str) -> None:
    recipe = read(tmp_path, RECIPES[name], images=20)
    renamed = {"max_resolution": "resolution", "optimizer": "optimizer_type"}
    renamed["training.ema"] = "training.ema_decay"
    lost = []
    for setting in names(RECIPES[name]):
        setting = renamed.get(setting, setting) if not name.startswith("one") else setting
        named = any(re.search(rf"(?<![\w.]){re.escape(setting)}(?!\.?\w)", note) for note in recipe.notes)
        if setting not in recipe.mapped and not named:
            lost.append(setting)
    assert not lost
    assert "private" not in str(recipe.notes)
    settings = flat(recipe.settings)
    assert {path for mapped in recipe.mapped.values() for path in mapped} - settings.keys() <= {"training.new_setting"}
    trained = flat(built(recipe).model_dump(mode="json"))
    assert {path: trained[path] for path in settings} == settings


def test_a_preset_of_the_gui(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPES["gui.json"], images=15)
    settings = built(recipe)
    assert recipe.source == "kohya_ss"
    assert (settings.adapter.kind, settings.adapter.rank, settings.adapter.alpha) == ("lora", 32, 16)
    assert settings.adapter.targets == "attention+ff"  # the fields for convolutions are there, but not used
    assert settings.optimizer.kind == "adamw8bit"
    assert (settings.optimizer.learning_rate, settings.training.text_encoder_lr_factor) == (1e-4, 0.5)
    assert settings.optimizer.model_dump()["weight_decay"] == 0.01  # what bitsandbytes does if nothing is said
    assert settings.schedule.kind == "cosine"
    assert settings.schedule.min_lr_ratio == 0
    assert settings.schedule.warmup == 0.1  # percent there
    assert settings.training.steps == 10 * 8  # epochs of ceil(15 / 2) batches
    assert (settings.model.clip_skip, settings.seed, settings.objective.noise_offset) == (2, 1234, 0.05)
    assert settings.preview.prompts == ("a portrait of mira --w 512 --h 768 --d 7 --l 7",)
    assert settings.model.base == ANY["model"]["base"]  # type: ignore[index]
    assert any("anything-v5.safetensors" in note and "D:" not in note for note in recipe.notes)


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"network_dim": None, "network_alpha": None}, "adapter.rank", 4),
        ({"network_alpha": 0}, "adapter.alpha", 16.0),
        ({"network_args": ["conv_dim=4", "conv_alpha=8"]}, "adapter.ranks", RANKS),
        ({"network_module": "lycoris.kohya", "network_args": ["conv_dim=4"]}, "adapter.ranks", RANKS),
        ({"network_module": "lycoris.kohya", "network_args": ["preset=unet-only"]}, "training.text_encoder", False),
        ({"unet_lr": 2e-4}, "training.text_encoder_lr_factor", 0.5),  # its own rate is then the common one
        ({"text_encoder_lr": 0}, "training.text_encoder", False),
        ({"use_8bit_adam": True, "optimizer_type": ""}, "optimizer.kind", "adamw8bit"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 150}, "schedule.warmup", 0.1),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 150}, "schedule.warmup", 0.0),
        ({"resolution": "768,512"}, "training.resolution", 640),
        ({"max_train_epochs": 2}, "training.steps", 10),  # it goes before max_train_steps
        ({"alpha_mask": True}, "objective.unmasked_weight", 0.0),
        ({"min_snr_gamma": 5, "debiased_estimation_loss": True}, "objective.weighting", "min-snr"),
        ({"save_precision": "float"}, "export.precision", "fp32"),
    ],
)
def test_settings_of_the_scripts(tmp_path: Path, changes: dict[str, Any], path: str, value: object) -> None:
    values = {key: item for key, item in (SCRIPT | changes).items() if item is not None}
    recipe = read(tmp_path, toml(values), images=20)
    assert flat(recipe.settings)[path] == value


@pytest.mark.parametrize(
    "changes",
    [
        {"network_args": ["conv_dim=4", "conv_alpha=4"]},
        {"network_module": "lycoris.kohya", "network_args": ["algo=loha", "conv_dim=4"]},
    ],
)
def test_a_rank_of_convolutions_that_means_another_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = read(tmp_path, toml(SCRIPT | changes))
    assert "adapter.ranks" not in flat(recipe.settings)
    assert any("Convolutions have rank 4" in note for note in recipe.notes)
    assert not any("adapter.ranks" in note for note in recipe.notes), "which the file does not ask for"


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl", "micro"])
def test_the_rank_of_convolutions_is_of_three_by_three_alone(model: str) -> None:
    adapter = Lora(rank=16, targets="conv", ranks=tuple(sections.convolution_ranks(4)))
    ranks = {1: set[int](), 3: set[int]()}
    for name, shape in layer_shapes.known(model).items():
        path = name.partition(":")[2]
        if len(shape) > 1 and path.endswith(CONVOLUTIONS):
            ranks[shape[-1] if len(shape) == 4 else 1].add(adapter.rank_of(path))
        else:
            assert adapter.rank_of(path) == 16, path
    assert ranks == {1: {16}, 3: {4}}


def test_a_preset_of_onetrainer(tmp_path: Path) -> None:
    settings = built(read(tmp_path, RECIPES["onetrainer.json"], images=10))
    assert (settings.adapter.rank, settings.adapter.alpha, settings.adapter.targets) == (16, 1, "attention+ff")
    assert settings.training.steps == 20 * 5  # epochs of ceil(10 * 2 / 4) batches
    assert settings.schedule.warmup == 1  # 100 of 100 steps
    assert settings.training.ema_decay == pytest.approx(0.99**0.2, abs=1e-6)  # there each fifth step
    assert settings.training.text_encoder_lr_factor == pytest.approx(1 / 3, abs=1e-5)
    assert settings.captions.shuffle
    assert settings.captions.keep_tokens == 2
    assert settings.captions.dropout == 0.1
    assert settings.preview.prompts == ("a cat --w 1024 --h 768 --d 42 --s 20 --l 7.0 --n blurry",)
    scaled = read(tmp_path, json.dumps(ONE_TRAINER | {"learning_rate_scaler": "BATCH"}))
    assert flat(scaled.settings)["optimizer.learning_rate"] == 0.0006  # times the root of 4


@pytest.mark.parametrize("switch", ["use_schedulefree", "factored", "d_limiter"])
def test_schedule_free_prodigy_is_read_but_for_variants(tmp_path: Path, switch: str) -> None:
    theirs = {"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE", "beta2": 0.98, switch: True}
    rates = {"learning_rate": 1.0, "text_encoder": {"learning_rate": 1.0}}
    recipe = read(tmp_path, json.dumps(ONE_TRAINER | rates | {"optimizer": theirs}))
    assert built(recipe).optimizer == SECTIONS["prodigy-schedule-free"](beta2=0.98)
    assert built(recipe).schedule.kind == "constant"
    of_scripts = {"optimizer_type": "prodigyplus.ProdigyPlusScheduleFree", "learning_rate": 1.0}
    for other in (
        read(tmp_path, json.dumps(ONE_TRAINER | {"optimizer": theirs | {switch: False}})),
        read(tmp_path, toml(SCRIPT | of_scripts | {"optimizer_args": [f"{switch}=False"]})),
    ):
        assert "optimizer.kind" not in flat(other.settings)
        assert any("in this variant" in note for note in other.notes)
    assert built(read(tmp_path, toml(SCRIPT | of_scripts))).optimizer == SECTIONS["prodigy-schedule-free"]()


MUON = {"optimizer": "MUON_ADV", "beta1": 0.9, "rms_rescaling": True, "nesterov": True, "normuon_variant": False}


def test_muon_is_read_if_it_steps_as_ours(tmp_path: Path) -> None:
    settings = built(read(tmp_path, json.dumps(ONE_TRAINER | {"optimizer": MUON})))
    assert settings.optimizer == SECTIONS["muon"](learning_rate=3e-4, momentum=0.9, weight_decay=0.0)
    everywhere = read(tmp_path, json.dumps(ONE_TRAINER | {"optimizer": MUON, "layer_filter_preset": "full"}))
    assert built(everywhere).adapter.targets == "attention+ff"
    assert any("Muon trains matrices only" in note for note in everywhere.notes)
    for changes in ({"optimizer": "MUON"}, {"rms_rescaling": False}):
        other = read(tmp_path, json.dumps(ONE_TRAINER | {"optimizer": MUON | changes}))
        assert not {"optimizer.kind", "optimizer.learning_rate"} & flat(other.settings).keys(), changes
        assert any("does not have the optimizer MUON" in note for note in other.notes), changes
    scripts = SCRIPT | {"optimizer_type": "Muon"}
    scaled = scripts | {"optimizer_args": ["adjust_lr_fn='match_rms_adamw'", "momentum=0.9"]}
    expected = SECTIONS["muon"](learning_rate=1e-4, momentum=0.9, weight_decay=0.1)  # which is torch's
    assert built(read(tmp_path, toml(scaled))).optimizer == expected
    other = read(tmp_path, toml(scripts))
    assert "optimizer.kind" not in flat(other.settings)
    assert any("Muon (adjust_lr_fn=original)" in note for note in other.notes)


def test_a_job_of_ai_toolkit(tmp_path: Path) -> None:
    settings = built(read(tmp_path, AI_TOOLKIT))
    assert settings.optimizer.learning_rate == 1e-4  # YAML's 1e-4 is a text
    assert (settings.training.steps, settings.training.gradient_accumulation) == (3000, 2)
    assert (settings.training.resolutions, settings.adapter.targets) == ((1024, 768, 512), "conv")
    smaller = built(read(tmp_path, AI_TOOLKIT.replace("conv: 32", "conv: 8")))
    assert (settings.adapter.ranks, smaller.adapter.ranks) == ((), tuple(sections.convolution_ranks(8)))
    assert not settings.training.text_encoder
    assert not settings.preview.at_start
    assert settings.preview.prompts == ("mira in a park --w 1024 --h 768", "a dog --n blurry")
    assert settings.training.ema_decay == 0.99
    assert (settings.captions.shuffle, settings.captions.tag_dropout) == (True, 0.1)
    preserving = built(read(tmp_path, RECIPES["ai-toolkit-lokr.yaml"]))
    assert (preserving.class_word, preserving.preservation.share) == ("person", 1.0)


@pytest.mark.parametrize(
    ("theirs", "ours", "note"),
    [
        ("512,768", (768, 512), ""),
        ("1024", (1024,), ""),
        ("512, 1000,512", (1024, 512), "1024, 512 pixels"),
        ("512,x", (512,), "no counterpart for: resolution"),
        (",".join(map(str, range(64, 1024, 64))), (960,), "most 7"),
        ("", (512,), ""),
    ],
)
def test_onetrainers_batches_alternate_between_resolutions(
    tmp_path: Path, theirs: str, ours: tuple[int, ...], note: str
) -> None:
    recipe = read(tmp_path, json.dumps(ONE_TRAINER | {"resolution": theirs}))
    assert built(recipe).training.resolutions == ours
    assert note in " ".join(recipe.notes)
    assert any("pixels here" in each for each in recipe.notes) == ("pixels" in note)


def test_a_config_of_limner_without_what_belongs_to_its_run(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPES["limner.toml"])
    assert recipe.source == "Limner"
    assert recipe.settings == {
        "adapter": {"kind": "lora", "rank": 4},
        "optimizer": {"learning_rate": 0.002},
        "training": {"steps": 5, "ema_decay": 0.5},
    }
    assert any("training.new_setting" in note for note in recipe.notes)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(config.dump(config.build({"name": "x", "dataset": "x"})), encoding="utf-8")
    assert built(reading.read(run)).preservation.share == 0.25  # micro's preset, as the run had it


def test_paths_that_are_not_on_this_machine_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").touch()
    assert read(tmp_path, toml({"adapter.kind": "lora", "model.training_adapter": ""})).notes == ()
    files = {"adapter.start": "/home/me/first.safetensors", "model.training_adapter": "C:/turbo.x"}
    files["preview.base"] = "/home/me/turbo"
    recipe = read(tmp_path, toml({"adapter.kind": "lora"} | files))
    reason = "Names, paths and accounts of that machine or run, not part of a recipe"
    assert not files.keys() & flat(recipe.settings).keys()
    assert recipe.notes == (f"{reason}: {', '.join(files)}.",)
    kept = {"preview.base": "someone/turbo", "adapter.start": str(tmp_path / "here.safetensors")}
    kept["model.training_adapter"] = "someone/turbo/turbo.safetensors"
    assert flat(read(tmp_path, toml({"adapter.kind": "lora"} | kept)).settings).items() >= kept.items()


@pytest.mark.parametrize(
    ("metadata", "source", "expected"),
    [
        (
            {
                "ss_network_module": "networks.lora",
                "ss_network_dim": "8",
                "ss_network_alpha": "4",
                "ss_unet_lr": "0.0002",
                "ss_learning_rate": "0.0001",
                "ss_text_encoder_lr": "None",
                "ss_max_train_steps": "700",
                "ss_steps": "700",
                "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.95))",
                "ss_resolution": "(512, 512)",
                "ss_batch_size_per_device": "3",
                "ss_shuffle_caption": "True",
                "ss_lr_scheduler": "cosine",
                "ss_lr_warmup_steps": "70",
                "ss_tag_frequency": '{"10_x": {"a": 1}}',
                "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4"}',
                "ss_min_snr_gamma": "None",
            },
            "sd-scripts",
            {
                "optimizer.beta2": 0.95,
                "training.batch_size": 3,
                "schedule.warmup": 0.1,
                "adapter.targets": "conv",
                "captions.shuffle": True,
            },
        ),
        (
            {
                "ss_network_module": "networks.lora",
                "ss_network_dim": "8",
                "ss_datasets": json.dumps(
                    [
                        {
                            "batch_size_per_device": 5,
                            "resolution": [n, n],
                            "subsets": [{"image_dir": "x", "keep_tokens": 2}],
                        }
                        for n in (512, 768)
                    ]
                ),
            },
            "sd-scripts",
            {
                "training.batch_size": 5,
                "training.resolution": 768,
                "training.further_resolutions": [512],
                "captions.keep_tokens": 2,
            },
        ),
        (
            {
                "ss_network_module": "networks.lora_flux",
                "ss_network_dim": "8",
                "ss_base_model_version": "flux1",
                "ss_timestep_sampling": "sigmoid",
                "ss_resolution": "(1024, 1024)",
            },
            "sd-scripts",
            {"objective.timestep_sampling": "logit-normal", "training.resolution": 1024},
        ),
        ({"limner.config": RECIPES["limner.toml"]}, "Limner", {"adapter.rank": 4}),
        ({"ot_config": json.dumps(ONE_TRAINER)}, "OneTrainer", {"adapter.rank": 16}),
    ],
)
def test_train_as_an_adapter_was(
    tmp_path: Path, metadata: dict[str, str], source: str, expected: dict[str, Any]
) -> None:
    import numpy as np

    save_file({"lora_unet_x.alpha": np.ones(1, dtype=np.float32)}, tmp_path / "a.safetensors", metadata)
    recipe = reading.read(tmp_path / "a.safetensors")
    assert recipe.source == source
    assert flat(recipe.settings).items() >= expected.items()
    built(recipe)


def test_of_a_recipe_for_another_model_its_data_prompts_and_rank_are_taken(tmp_path: Path) -> None:
    """Of ai-toolkit, which trains many: the others' settings are left to the presets, and named."""
    whole, other = (read(tmp_path, AI_TOOLKIT.replace("arch: sdxl", arch)) for arch in ("arch: sdxl", "arch: hidream"))
    full, part = flat(whole.settings), flat(other.settings)
    assert part.items() <= full.items()
    assert {"adapter.rank", "adapter.alpha", "training.resolution", "preview.prompts"} <= part.keys()
    assert not [path for path in part if path.startswith(("optimizer.", "model.", "objective."))]
    assert any("for hidream, which Limner does not train" in note for note in other.notes)
    assert any("train.lr" in note for note in other.notes)
    built(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a recipe"),
        ("{}", "not a recipe"),
        ("[" * 100_000, "not a recipe"),
        ("x = {" + "'a' . " * 5_000 + "b = 1}", "not a recipe"),
        ("config: {process: [{network: !!python/object/apply:os.system ['true']}]}", "not a recipe"),
        (json.dumps({"a": "x" * MAX_SETTINGS}), "too large"),
        (json.dumps(GUI | {"more": [{str(n): n} for n in range(6000)]}), "too large"),
        (json.dumps(GUI | {"lumina_checkbox": True}), "not for a model that Limner trains"),
        (toml(SCRIPT | {"network_module": "networks.lora_flux2"}), "not for a model that Limner trains"),
        (toml(SCRIPT | {"network_module": "networks.lora_qwen_image"}), "sd-scripts for Qwen-Image are not read"),
        (json.dumps(ONE_TRAINER | {"model_type": "FLUX_FILL_DEV_1"}), "not for a model that"),
        (json.dumps(ONE_TRAINER | {"training_method": "EMBEDDING"}), "does not train an adapter"),
    ],
    ids=range(12),
)
@pytest.mark.timeout(120)
def test_hostile_and_other_files_are_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"network_dim": 10**30},
        {"network_dim": "NaN"},
        {"network_dim": [1]},
        {"network_dim": True},
        {"network_dim": [[[1]]]},
        {"learning_rate": 1e999},
        {"learning_rate": "9" * 5000},
        {"unet_lr": -1},
        {"text_encoder_lr": []},
        {"text_encoder_lr": 0.5, "unet_lr": 1e-9},
        {"resolution": "0,0"},
        {"resolution": 4},
        {"optimizer_args": "betas=((((" * 300},
        {"network_args": 5},
        {"network_args": ["=" * 50, "x"]},
        {"seed": -5},
        {"lr_warmup_steps": -3},
        {"train_batch_size": 10**9},
        {"max_train_steps": 1e18},
        {"sample_prompts": "--w 5 --q x\n" * 500},
        {"lr_scheduler": ["x"]},
    ],
    ids=str,
)
def test_odd_values_are_named_and_the_rest_is_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = read(tmp_path, json.dumps(SCRIPT | changes), images=10)
    built(recipe)
    for key in changes:
        assert any(key.partition(".")[0] in name for name in [*recipe.mapped, " ".join(recipe.notes)])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    import numpy as np

    save_file({"x": np.ones(1, dtype=np.float32)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="does not say how it was trained"):
        reading.read(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "bare.safetensors").read_bytes()[:-2])
    with pytest.raises(UserError):
        reading.read(tmp_path / "cut.safetensors")
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match="There is no file"):
            reading.read(missing)


def test_recipes_of_others_name_kinds_of_the_table_only() -> None:
    """So none of them can choose the class of an optimizer."""
    read = {*optimizer_args.KINDS.values(), *onetrainer.OPTIMIZERS.values(), *ai_toolkit.OPTIMIZERS.values()}
    assert read <= optimization.USUAL.keys() <= ROWS.keys()
    assert writing.OPTIMIZERS.keys() <= ROWS.keys() == SECTIONS.keys() - {"custom"}


@pytest.mark.timeout(300)
def test_damaged_recipes_are_read_or_refused_in_words(home: Path, files: int) -> None:
    texts = {"json": json.dumps(GUI), **{Path(name).suffix[1:]: text for name, text in sorted(RECIPES.items())}}
    seeds = [f"{form}\n{text}".encode() for form, text in texts.items()]

    def read_bytes(data: bytes) -> None:
        form, _, text = data.partition(b"\n")
        suffix = form.decode(errors="replace") if form in (b"json", b"toml", b"yaml") else "json"
        path = home / "outputs" / f"x.{suffix}"
        path.write_bytes(text)
        reading.read(path, images=14)

    fuzz("recipes", seeds, files, read_bytes)
