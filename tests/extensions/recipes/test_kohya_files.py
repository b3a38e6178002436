"""Files that a file for kohya's `--config_file` names: read if they lie beside it, and never from anywhere else."""

from pathlib import Path

import pytest

from limner_extensions.recipes import reading
from tests.conftest import CHARACTER

CONFIG = """
[model]
pretrained_model_name_or_path = "base.safetensors"
network_module = "networks.lora"
network_dim = 8
max_train_steps = 100
resolution = 512
"""
DATASETS = f"""
[general]
keep_tokens = 2
shuffle_caption = true

[[datasets]]
resolution = 768

[[datasets.subsets]]
image_dir = {str(CHARACTER)!r}
class_tokens = "kmx girl"
"""
PROMPTS = "a girl --w 512 --h 768\n# no prompt\na girl in the rain\n"


def write(folder: Path, datasets: str = "", prompts: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    names = f"[data]\ndataset_config = {datasets!r}\n[sample]\nsample_prompts = {prompts!r}\n"
    (folder / "config.toml").write_text(CONFIG + names, encoding="utf-8")
    return folder / "config.toml"


@pytest.mark.parametrize("where", ["", "/home/anna/kohya/", "C:\\kohya\\"])
def test_what_lies_beside_it_is_read(tmp_path: Path, where: str) -> None:
    config = write(tmp_path / "here", f"{where}sets.toml", f"{where}prompts.txt")
    (config.parent / "sets.toml").write_text(DATASETS, encoding="utf-8")
    (config.parent / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    recipe = reading.read(config, datasets=True)
    assert recipe.settings["captions"]["keep_tokens"] == 2
    assert recipe.settings["training"]["resolution"] == 768
    assert (recipe.settings["dataset"], recipe.settings["trigger"]) == (str(CHARACTER), "kmx")
    assert recipe.settings["preview"]["prompts"] == ["a girl --w 512 --h 768", "a girl in the rain"]
    assert "dataset_config is read from sets.toml, beside the recipe." in recipe.notes
    assert "sample_prompts is read from prompts.txt, beside the recipe." in recipe.notes
    without = reading.read(config)
    assert without.settings["captions"]["keep_tokens"] == 2
    assert "dataset" not in without.settings


def test_nothing_else_of_this_machine_is_read(tmp_path: Path) -> None:
    """Not even through a link. A folder and a broken file are left alone."""
    own = reading.read(write(tmp_path / "own", prompts="a girl in the rain"))
    assert own.settings["preview"]["prompts"] == ["a girl in the rain"], "prompts in the recipe itself stay"
    (tmp_path / "sets.toml").write_text(DATASETS, encoding="utf-8")
    (tmp_path / "secret.txt").write_text("my secret", encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()
    (here / "prompts.txt").symlink_to(tmp_path / "secret.txt")
    (here / "folder.toml").mkdir()
    for datasets, prompts in (
        (str(tmp_path / "sets.toml"), str(tmp_path / "secret.txt")),
        ("../sets.toml", "../secret.txt"),
        ("..", "/etc/hostname.txt"),
        ("folder.toml", "prompts.txt"),
    ):
        recipe = reading.read(write(here, datasets, prompts), datasets=True)
        assert "my secret" not in str(recipe)
        assert "preview" not in recipe.settings or "prompts" not in recipe.settings["preview"]
        assert "dataset" not in recipe.settings
        for key in ("dataset_config", "sample_prompts"):
            assert any(note.startswith(f"{key} names a file that is not beside the recipe") for note in recipe.notes)
    (here / "broken.toml").write_text("[" * 100_000, encoding="utf-8")
    recipe = reading.read(write(here, "broken.toml"), datasets=True)
    assert any(note.startswith("dataset_config names broken.toml, which cannot be read") for note in recipe.notes)
