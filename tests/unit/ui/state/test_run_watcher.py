"""Runs as the page reads them."""

from pathlib import Path

import pytest

from trainer.runs import Run, events
from ui.state.run_watcher import RunWatcher


@pytest.mark.parametrize("above", ["", '"name" = """two\n[lines]"""\n', "subjects = [\n[1], [2]]\n"])
def test_the_dataset_of_settings_by_hand_is_found(home: Path, above: str) -> None:
    run = Run(home / "outputs" / "2026-12-01_100000_rin")
    run.folder.mkdir()
    run.config_file.write_text(f'{above}dataset = "rin"\n\n[model]\nbase = "micro"\n')
    watch = RunWatcher()
    assert (watch.runs_of("rin"), watch.runs_of("other")) == ([run], [])


def test_of_a_log_that_became_shorter_nothing_old_is_left(home: Path) -> None:
    run, watch = Run(home / "outputs" / "2026-12-01_100000_rin"), RunWatcher()
    run.folder.mkdir()
    run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
    lines = run.log.read_bytes()
    run.report(events.Stopped(step=1))
    assert watch.view(run).status == "stopped"
    run.log.write_bytes(lines)
    assert (watch.view(run).status, watch.view(run).state.end) == ("interrupted", "")
    run.log.unlink()
    assert watch.view(run).state == events.State()
