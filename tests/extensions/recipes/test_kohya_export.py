"""Settings of ours as a config of sd-scripts: what it says comes back as it was, and the rest is named."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from limner_extensions.recipes import kohya_export, reading
from limner_extensions.recipes.draft import flat, nested
from trainer import config

PLAIN: dict[str, Any] = {
    "name": "x", "dataset": "x", "model.base": "owner/name", "training.steps": 400, "training.text_encoder": True,
    "training.precision": "bf16", "adapter.rank": 16, "preservation.share": 0.0, "captions.trigger_only": 0.0,
}  # fmt: skip
# As in docs/sdxl_train_network.md, docs/sd3_train_network.md and docs/flux_train_network.md of sd-scripts.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "sdxl": {"network_module": "networks.lora", "network_dim": 32, "network_alpha": 16},
    "sd3": {"network_module": "networks.lora_sd3", "network_dim": 16, "network_alpha": 1,
            "weighting_scheme": "sigma_sqrt"},
    "flux": {"network_module": "networks.lora_flux", "network_dim": 16, "network_alpha": 1, "guidance_scale": 1.0,
             "timestep_sampling": "flux_shift", "model_prediction_type": "raw"},
}  # fmt: skip
# Not part of what sd-scripts could do: of the run, or of the machine.
NOT_SAID = ("record", "preview", "training.exposures", "training.devices", "training.cards", "name", "dataset",
            "captions.shuffles", "checkpoint.minutes", "checkpoint.keep", "checkpoint.adapters", "export")  # fmt: skip


def built(changes: dict[str, Any]) -> config.TrainConfig:
    return config.build(nested(PLAIN | changes))


def check_differences(before: config.TrainConfig, after: config.TrainConfig, notes: tuple[str, ...]) -> None:
    """Check that whatever did not come back was named."""
    again = flat(after.model_dump(mode="json"))
    for path, value in flat(before.model_dump(mode="json")).items():
        same = again.get(path) == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)
        assert same or path.startswith(NOT_SAID) or any(path in note for note in notes), path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter.rank": 8, "adapter.alpha": 4.0, "adapter.targets": "conv", "adapter.lora_plus_ratio": 4.0,
         "optimizer.kind": "adamw8bit", "optimizer.beta1": 0.8, "optimizer.weight_decay": 0.1, "seed": 7},
        {"adapter.rank": 8, "adapter.alpha": 4.0, "adapter.targets": "conv",
         "adapter.ranks": ["conv1 = 2", "conv2 = 2", "samplers.0.conv = 2"]},
        {"adapter.dropout": 0.1, "adapter.rank_dropout": 0.2, "model.clip_skip": 2, "schedule.kind": "constant",
         "schedule.warmup": 0.1, "held_out.share": 0.1, "held_out.every": 20, "adapter.start": "first.safetensors"},
        {"adapter.dora": True, "adapter.targets": "attention", "subjects": ["kim --trigger kmx2"], "trigger": "rinx"},
        {"adapter.dora": True, "adapter.rslora": True, "optimizer.kind": "adafactor", "optimizer.learning_rate": 3e-4},
        {"adapter.kind": "loha", "adapter.rank": 4, "adapter.alpha": 4.0, "optimizer.kind": "lion",
         "optimizer.learning_rate": 2e-5, "training.text_encoder": False},
        {"adapter.kind": "lokr", "adapter.rank": 4, "adapter.factor": 4, "optimizer.kind": "prodigy",
         "objective.loss_type": "scheduled-huber", "model.prediction_type": "v_prediction", "captions.dropout": 0.1,
         "captions.shuffle": True, "captions.keep_tokens": 2, "captions.tag_dropout": 0.2, "images.flip": True},
        {"optimizer.kind": "prodigy-schedule-free", "optimizer.beta2": 0.98, "schedule.kind": "constant"},
        {"optimizer.kind": "came", "optimizer.beta3": 0.99, "schedule.kind": "linear", "schedule.min_lr_ratio": 0.0,
         "captions.multiple": True, "captions.max_token_length": 225, "training.batch_size": 3,
         "training.gradient_accumulation": 2, "training.resolution": 768, "training.max_grad_norm": 0.0},
        {"optimizer.kind": "ademamix", "optimizer.beta1": 0.8, "optimizer.alpha": 3.0, "schedule.kind": "cosine",
         "schedule.min_lr_ratio": 0.1, "schedule.warmup": 0.03, "objective.weighting": "min-snr",
         "objective.min_snr_gamma": 3.0, "objective.noise_offset": 0.05},
        {"optimizer.kind": "muon", "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.1, "schedule.kind": "cosine",
         "schedule.min_lr_ratio": 0.0, "schedule.cycles": 3, "objective.weighting": "debiased",
         "objective.input_perturbation": 0.1, "objective.min_timestep": 50},
        {"optimizer.kind": "schedule-free", "schedule.kind": "constant", "schedule.warmup": 0.0},
        {"schedule.kind": "warmup-stable-decay", "schedule.cooldown": 0.3, "schedule.min_lr_ratio": 0.1,
         "objective.loss_type": "huber", "objective.huber_c": 0.2, "objective.max_timestep": 900},
    ],
    ids=str,
)  # fmt: skip
def test_what_it_says_comes_back_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = built(changes)
    exported = kohya_export.export(settings, images=20)
    file = tmp_path / "kohya.toml"
    file.write_text(exported.text, encoding="utf-8")
    again = config.build(config.merge(nested(PLAIN), reading.read(file).settings))
    check_differences(settings, again, exported.notes)


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
    exported = kohya_export.export(settings, images=20)
    values = tomllib.loads(exported.text)
    assert f"accelerate launch {family}_train_network.py" in exported.text
    if family == "flux":
        assert "--clip_l ... --t5xxl ... --ae ..." in exported.text
        assert (values["guidance_scale"], values["model_prediction_type"]) == (settings.model.guidance, "raw")
    file = tmp_path / "kohya.toml"
    file.write_text(exported.text, encoding="utf-8")
    if values["network_module"] == "lycoris.kohya":  # the family then follows from the path of one of its parts
        mark = {"sd3": "clip_g", "flux": "ae"}[family]
        file.write_text(f'{exported.text}\n{mark} = "part.safetensors"', encoding="utf-8")
    again = config.build(config.merge(nested(PLAIN | {"model.family": family}), reading.read(file).settings))
    check_differences(settings, again, exported.notes)


def test_what_it_cannot_say_of_flow_matching_is_named() -> None:
    def notes(family: str, **changes: Any) -> str:  # noqa: ANN401 - any settings
        settings = {"training.resolution": 1024, "model.family": family, **changes}
        return " ".join(kohya_export.export(built(settings)).notes)

    assert "modulation" in notes("flux")  # whose single blocks have more layers
    assert "modulation" not in notes("sd3")  # whose other layers are given a rank of 0
    assert "split_qkv" in notes("flux")  # at which older versions of its script stop
    assert "split_qkv" not in notes("sd3")
    assert "square of the noise level" in notes("sd3", **{"objective.timestep_sampling": "logit-normal"})
    assert "divides by the noise level" in notes("sd3", **{"objective.timestep_sampling": "uniform"})
    assert "before they are scaled" in notes("sd3", **{"objective.min_timestep": 50})
    assert "objective.min_timestep = 50" in notes("flux", **{"objective.min_timestep": 50})
    assert "adapter.blocks" in notes("flux", **{"adapter.blocks": ["transformer_blocks.0."]})


def test_automatic_values_are_written_out() -> None:
    exported = kohya_export.export(
        built({"adapter.rank": 0, "training.steps": 0, "training.exposures": 100}), images=16
    )
    values = tomllib.loads(exported.text)
    assert (values["network_dim"], values["max_train_steps"]) == (16, 100)  # 100 * sqrt(16) images, 4 a step
    scaled = tomllib.loads(kohya_export.export(built({"adapter.rslora": True, "adapter.rank": 16})).text)
    assert scaled["network_alpha"] / 16 == 16 / 16**0.5  # alpha / rank there is alpha / sqrt(rank) here


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter.targets": "attention"}, "adapter.targets"),
        ({"adapter.ranks": ["up_blocks = 8"]}, "adapter.ranks"),
        ({"objective.weighting": "p2"}, "objective.weighting"),
        ({"objective.timestep_sampling": "logit-normal"}, "objective.timestep_sampling"),
        ({"preservation.share": 0.5}, "preservation.weight"),
        ({"schedule.kind": "linear", "schedule.min_lr_ratio": 0.2}, "schedule.min_lr_ratio"),
        ({"regularization.dataset": "reg"}, "regularization.dataset"),
        ({"class_word": "girl"}, "class_word"),
        ({"model.weights": "nf4"}, "model.weights"),
        ({"preview.prompts": ["a cat"]}, "preview.prompts"),
        ({"model.base": "micro", "training.resolution": 128}, "micro"),
        ({"training.steps": 0}, "max_train_steps"),
        ({"optimizer.kind": "muon"}, "which Muon refuses"),
    ],
)
def test_what_it_cannot_say_is_named(changes: dict[str, Any], named: str) -> None:
    assert any(named in note for note in kohya_export.export(built(changes)).notes)
    assert "micro" in changes.values() or not any(named in note for note in kohya_export.export(built({})).notes)


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
    written = tomllib.loads(kohya_export.export(plain, images=16).text)
    assert {key: written[key] for key in options} == options


def test_what_sd_scripts_needs_is_written_and_no_path() -> None:
    for side, smallest, largest in ((128, 128, 1024), (512, 256, 1024), (1024, 256, 2048)):
        values = tomllib.loads(kohya_export.export(built({"training.resolution": side})).text)
        assert values["resolution"] == f"{side},{side}"
        assert (values["min_bucket_reso"], values["max_bucket_reso"]) == (smallest, largest)
        assert values["caption_extension"] == ".txt"  # its own is .caption

    paths = {"model.base": "/home/me/models/base.safetensors", "adapter.start": "/home/me/first.safetensors"}
    exported = kohya_export.export(built(paths))
    assert 'network_weights = "first.safetensors"' in exported.text
    assert 'pretrained_model_name_or_path = "base.safetensors"' in exported.text
    assert "/home" not in exported.text
