"""Settings of version 0.1 under their old names."""

from pathlib import Path

import pytest

from trainer import config
from trainer.config import TrainConfig, renames
from trainer.errors import UserError
from trainer.schema import setting_paths

OLD = [f"{section}.{name}" for section, names in renames.NAMES.items() for name in names]


@pytest.mark.parametrize("path", [*OLD, "pictures.flip", "prior.dataset"])
def test_an_old_name_has_a_current_one(path: str) -> None:
    section, name = path.split(".")
    [(current, values)] = renames.current({section: {name: 1}}).items()
    assert path not in setting_paths(TrainConfig)
    assert f"{current}.{next(iter(values))}" in {*setting_paths(TrainConfig), "record.prediction_type"}


def test_a_file_of_version_0_1_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'name = "x"\ndataset = "x"\n[training]\naccumulation = 2\nclip = 0.5\n'
        'gradient_checkpointing = "large"\n[objective]\nmeasure = "squared"\n'
        "[captions]\nchunks = 2\nkeep = 3\n[pictures]\nflip = true\n[prior]\nshare = 0.5\n"
        '[schedule]\nkind = "stable"\nfloor = 0.1\n'
    )
    settings = config.load(file)
    assert (settings.training.gradient_accumulation, settings.training.max_grad_norm) == (2, 0.5)
    assert settings.training.gradient_checkpointing == "transformers"
    assert (settings.captions.max_token_length, settings.captions.keep_tokens) == (150, 3)
    assert (settings.objective.loss_type, settings.images.flip, settings.regularization.share) == ("l2", True, 0.5)
    data = config.override({"name": "x", "dataset": "x", "training": {"micro_batches": 2}}, ["training.parts=4"])
    assert config.build(data).training.micro_batches == 4, "an old name may be assigned"
    assert (settings.schedule.kind, getattr(settings.schedule, "min_lr_ratio", None)) == ("warmup-stable-decay", 0.1)


def test_a_setting_that_is_gone_is_refused_where_it_did_something() -> None:
    data = {"name": "x", "dataset": "x", "training": {"low_resolution_share": 0.0, "steps": 7}}
    assert config.build(data).training.steps == 7
    for wrong, old in (
        ({"training": {"low_resolution_share": 0.5}}, "low_resolution_share"),
        ({"training": {"tensorboard": True}}, "tensorboard"),
        ({"training": {"parts": 1, "micro_batches": 2}}, "training.parts"),
        ({"pictures": {"flip": True}, "images": {"flip": False}}, "pictures"),
    ):
        with pytest.raises(UserError, match=f"{old} is not a setting"):
            config.build({**data, **wrong})
    logged = {**data, "training": {"tensorboard": True}}
    assert config.build({**logged, "record": {}}).name == "x", "a run that wrote logs goes on"
