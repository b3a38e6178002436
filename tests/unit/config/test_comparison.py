"""What a config says of itself to others: its differences from the preset, and no path."""

import pytest

from trainer import config
from trainer.config import adjustments, comparison


def test_what_was_changed_is_named_beside_what_the_preset_has() -> None:
    settings = config.build(
        {"name": "rin", "dataset": "rin", "adapter": {"kind": "lokr", "factor": 4}, "training": {"steps": 24}}
    )
    assert comparison.differences(config.build({"name": "rin", "dataset": "rin", "preset": "style"})) == []
    differences = {each.path: (each.title, each.value, each.usual) for each in comparison.differences(settings)}
    assert differences["adapter.kind"] == ("Adapter", "lokr", "lora")
    assert differences["adapter.factor"] == ("Factor", 4, 8)
    assert differences["training.steps"] == ("Steps", 24, 0)
    derived = settings.training.model_copy(update={"steps": 0})
    steps = adjustments.planned_steps(derived, 12)
    planned = settings.model_copy(update={"training": settings.training.model_copy(update={"steps": steps})})
    paths = {each.path for each in comparison.differences(planned, 12)}
    assert "training.steps" not in paths, "they follow from the exposures"
    assert "adapter.factor" in paths


def test_values_are_said_in_words() -> None:
    values = [True, "cosine", 0.0004, 3, ("down", "up")]
    assert [comparison.shown(value) for value in values] == ["on", "cosine", "0.0004", "3", "down, up"]


@pytest.mark.parametrize("folder", ["/home/anna/models/", "C:\\Users\\anna\\models\\", "\\\\nas\\anna\\"])
def test_no_path_is_published(folder: str) -> None:
    settings = config.build(
        {
            "name": "rin", "dataset": f"{folder}rin", "regularization": {"dataset": f"{folder}people"},
            "model": {"base": f"{folder}fox.safetensors", "vae": f"{folder}vae.safetensors"},
        }
    )  # fmt: skip
    text = config.dump(config.without_paths(settings))
    assert "anna" not in text
    lines = ('dataset = "rin"', 'base = "fox.safetensors"', 'vae = "vae.safetensors"', 'dataset = "people"')
    assert all(line in text for line in lines)
    named = config.build({"name": "rin", "dataset": "rin", "model": {"base": "anna/fox"}})
    assert config.without_paths(named).model.base == "anna/fox"
