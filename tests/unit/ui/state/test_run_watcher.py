"""Runs as the page reads them."""

from pathlib import Path

import pytest

from trainer.runs import Run
from ui.state.run_watcher import RunWatcher


@pytest.mark.parametrize("above", ["", '"name" = """two\n[lines]"""\n', "subjects = [\n[1], [2]]\n"])
def test_the_dataset_of_settings_by_hand_is_found(home: Path, above: str) -> None:
    run = Run(home / "outputs" / "2026-12-01_100000_rin")
    run.folder.mkdir()
    run.config_file.write_text(f'{above}dataset = "rin"\n\n[model]\nbase = "micro"\n')
    watch = RunWatcher()
    assert (watch.runs_of("rin"), watch.runs_of("other")) == ([run], [])
