"""What a config says of itself to others: its differences from the preset, and no path."""

import pytest

from trainer import config


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
