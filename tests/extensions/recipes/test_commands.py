"""`limner import-recipe` and `limner export-recipe`."""

import json
import tomllib
from pathlib import Path

from tests.extensions.recipes.examples import GUI, RECIPES
from tests.integration.runs.test_processes import limner
from trainer import config


def test_a_recipe_becomes_a_config_for_a_dataset(character: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "Mira's recipe.json", tmp_path / "mira.toml"
    recipe.write_text(json.dumps(GUI | {"pretrained_model_name_or_path": "owner/name"}), encoding="utf-8")
    done = limner("import-recipe", recipe, "--dataset", "rin", "--out", out)
    assert done.returncode == 0, done.stderr
    settings = config.load(out)
    assert (settings.name, settings.dataset, settings.model.base) == ("mira", "rin", "owner/name")
    assert settings.training.steps == 10 * 7  # of 14 images, two a batch
    assert "scale_weight_norms" in done.stderr
    assert "private" not in done.stdout + done.stderr + out.read_text(encoding="utf-8")
    printed = limner("import-recipe", recipe)
    assert tomllib.loads(printed.stdout)["name"] == "Mira-s-recipe"


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    done = limner("import-recipe", tmp_path / "notes.txt")
    assert done.returncode != 0
    assert "not a recipe" in done.stderr
    (tmp_path / "a.toml").write_text(RECIPES["script.toml"], encoding="utf-8")
    assert "no folder" in limner("import-recipe", tmp_path / "a.toml", "--out", tmp_path / "no" / "x").stderr
