"""Recipes on the page: the form is filled from one, and saved as one."""

from pathlib import Path

import pytest

from limner_extensions.recipes import panel
from tests.conftest import wait
from tests.e2e.conftest import Server, Visit, browser, refused, shared, visit
from tests.e2e.test_page import tab
from tests.e2e.test_studio import value
from tests.unit.ui.answers import answers
from trainer.errors import UserError

__all__ = ["browser", "refused", "shared", "visit"]


def test_a_recipe_of_another_trainer_fills_the_form(character: Path, tmp_path: Path) -> None:
    file = tmp_path / "kohya.toml"
    file.write_text('network_dim = 12\nnetwork_alpha = 6\nunet_lr = 2e-4\nmax_train_steps = 77\nmade_up = "<b>"\n')
    used = panel.use(answers(), str(file))
    report, values = used["report"], used["widgets"]
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
def test_a_recipe_is_imported_in_three_clicks(shared: Server, visit: Visit, tmp_path: Path) -> None:
    recipe = tmp_path / "kohya.toml"
    recipe.write_text('network_dim = 4\nmax_train_steps = 3\nlogging_dir = "/home/me/logs"\n')
    page = visit(shared)
    tab(page, "Train")  # 1
    page.locator("#advanced").get_by_text("Advanced").click()  # 2
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import a recipe").click()  # 3
    chooser.value.set_files(recipe)
    page.locator("#recipe-report").get_by_text("logging_dir").wait_for()
    wait(lambda: (value(page, "adapter-rank-lora"), value(page, "training-steps")) == ("4", "3"))
