"""Recipes on the page: the form is filled from one, and saved as one."""

import json
from pathlib import Path

import pytest

from limner_extensions.recipes import panel
from tests.e2e.conftest import Server, Visit, browser, shared, visit, wait
from tests.e2e.test_page import tab
from tests.e2e.test_settings import value
from tests.unit.ui.answers import answers, by_id
from trainer.errors import UserError

__all__ = ["browser", "shared", "visit"]


def test_a_recipe_of_another_trainer_fills_the_form(character: Path, tmp_path: Path) -> None:
    file = tmp_path / "kohya.toml"
    file.write_text('network_dim = 12\nnetwork_alpha = 6\nunet_lr = 2e-4\nmax_train_steps = 77\nmade_up = "<b>"\n')
    used = panel.use(answers(), str(file))
    report, values = used["report"], by_id(used["answer"]["values"])
    assert used["base"] == "micro"
    assert (values["form-adapter-rank-lora"], values["form-adapter-alpha-lora"]) == (12, 6.0)
    assert (values["form-training-steps"], values["form-optimizer-learning-rate-adamw"]) == (77, 2e-4)
    assert "made_up" in report
    assert "<b>" not in report
    assert not file.exists()
    broken = tmp_path / "x.json"
    broken.write_text("{")
    with pytest.raises(UserError, match="not a recipe"):
        panel.use(answers(), str(broken))


@pytest.mark.browser
def test_a_recipe_of_kohya_fills_the_form_in_three_clicks(shared: Server, visit: Visit, tmp_path: Path) -> None:
    recipe = tmp_path / "kohya.json"
    recipe.write_text(json.dumps({
        "LoRA_type": "Standard", "network_dim": 4, "network_alpha": 2, "learning_rate": 1e-4, "unet_lr": 1e-4,
        "max_train_steps": 3, "train_batch_size": 2, "max_resolution": "128,128", "optimizer": "AdamW",
        "lr_scheduler": "constant", "min_snr_gamma": 5, "mixed_precision": "no", "sample_every_n_steps": 0,
        "xformers": "xformers", "logging_dir": "/home/me/logs",
    }))  # fmt: skip
    page = visit(shared)
    tab(page, "Train")  # 1
    page.locator("#advanced").get_by_text("Advanced").click()  # 2
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import a recipe").click()  # 3
    chooser.value.set_files(recipe)
    page.locator("#recipe-report").get_by_text("logging_dir").wait_for()
    wait(lambda: value(page, "adapter-rank-lora") == "4" and value(page, "training-steps") == "3")
    assert value(page, "objective-weighting") == "min-snr"
