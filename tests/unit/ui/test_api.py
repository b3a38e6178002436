"""The API without a server: what its endpoints ask for, and what they refuse."""

from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.runs import Run
from ui import api
from ui.state.answers import create_run
from ui.state.sampler_client import SamplerClient


def test_settings_by_path_come_after_what_the_page_remembers(character: Path) -> None:
    data = api.run_settings("rin", "style", {"training.steps": 7, "name": "mira"})
    own = {"name": "mira", "training": {"steps": 7}}
    assert data == {"trigger": "miraxo", "dataset": "rin", "preset": "style", **own}
    config = create_run("rin", data).config()
    assert (config.name, config.preset, config.training.steps) == ("mira", "style", 7)


def test_a_sample_has_the_settings_of_the_previews(finished: Run) -> None:
    preview = finished.config().preview
    form = api.sample_form("miraxo", finished.id, 0.5, {"seed": 3, "size": None})
    assert (form.adapter, form.strength, form.seed, form.size) == (finished.id, 0.5, 3, "")
    assert (form.steps, form.guidance) == (preview.steps, preview.guidance)
    with pytest.raises(UserError, match="'step' is not a setting of an image"):
        api.sample_form("miraxo", "", 1.0, {"step": 3})


def test_a_run_is_controlled_by_the_names_of_its_commands(finished: Run) -> None:
    sampler = SamplerClient()
    for command in ("pause", "go_on", "stop"):
        with pytest.raises(UserError, match="not active"):
            api.send(finished.id, command, sampler)
    with pytest.raises(UserError, match="'fly' is not a command"):
        api.send(finished.id, "fly", sampler)
