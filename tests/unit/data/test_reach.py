"""Images that micro cannot draw: how they are recognized, what they change, and what users are told."""

import os
import sys
from pathlib import Path

import pytest

from tests.unit.ui.answers import answers
from trainer import config, paths, runs
from trainer.config import TrainConfig, base_notes
from trainer.data import checks, reach
from ui.state import base_model_choices, gauging
from ui.state.run_watcher import RunWatcher
from ui.tabs import download, image_grid, images, train
from ui.widgets import run_html

BEYOND, WITHIN = 2 * reach.LIMIT, reach.LIMIT / 2


def plan(project: str = "rin", **changes: object) -> str:
    return str(train.plan(answers(project=project, **changes))["cautions"])


def settings(**data: object) -> TrainConfig:
    return config.build({"name": "x", "dataset": "x", "trigger": "rin", **data})


def test_figures_are_kept_until_their_picture_changes(character: Path) -> None:
    names = [path.name for path in reach.sample(character)]
    assert (len(set(names)), names[0], names[-1]) == (reach.SAMPLE, "01.png", "14.png")
    reach.keep(character, dict.fromkeys(names[1:], WITHIN) | {names[0]: None})
    assert reach.missing(character) == []
    assert set(reach.known(character)) == set(names[1:])
    os.utime(character / names[3], ns=(1, 1))
    assert [path.name for path in reach.missing(character)] == [names[3]]
    assert names[3] not in reach.known(character)
    for damaged in ("{", "[]", '{"version": 0}', '{"version": 1, "images": {"01.png": 3}}'):
        (character / paths.CACHE / "micro.json").write_text(damaged)
        assert reach.known(character) == {}
        assert len(reach.missing(character)) == reach.SAMPLE


def test_what_micro_cannot_draw_is_found_where_it_is_the_base(character: Path) -> None:
    assert not reach.is_beyond({})
    assert not reach.is_beyond({"a": BEYOND, "b": WITHIN, "c": WITHIN}), "most have to be"
    reach.keep(character, {path.name: BEYOND for path in reach.sample(character)})
    for base in ("micro", "owner/name"):
        kinds = {problem.kind for problem in checks.examine(character, "miraxo", base=base).problems}
        assert ("beyond micro" in kinds) == (base == "micro")
    findings = image_grid.overview(image_grid.read("rin", "miraxo"))["findings"]
    row = next(finding for finding in findings if finding["kind"] == "beyond micro")
    assert row["title"] == "Micro cannot draw images like these."
    assert "Base model in the Train tab" in row["remedy"]
    assert "<b>Micro cannot draw images like these.</b>" in plan()
    reach.keep(character, {path.name: WITHIN for path in reach.sample(character)})
    assert "cannot draw" not in plan()


def test_the_page_asks_micro_once(character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = tmp_path / "requests"
    code = f"import sys; open({str(requests)!r}, 'a').write(sys.argv[-1] + chr(10))"
    monkeypatch.setattr(gauging, "COMMAND", (sys.executable, "-c", code))
    while image_grid.read("rin").left:
        assert images.measure({"project": "rin"})["ok"]
    assert requests.read_text() == f"{character}\n"
    assert not gauging.look(character)
    assert requests.read_text() == f"{character}\n"


def test_no_request_waits_long_for_micro(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauging, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(gauging, "MOMENT", 0.05)
    assert gauging.look(character)
    assert reach.missing(character), "it is still looking"
    monkeypatch.setattr(gauging, "PATIENCE", 0.0)
    assert not gauging.look(character)
    assert not reach.missing(character), "what it could not say in time is not asked again"


def test_images_without_captions_preserve_generated_ones() -> None:
    usual = settings()
    changed = base_notes.adjust_uncaptioned(usual, ["", "rin", "", "rin, smiling"], beyond=True)
    assert changed.preservation.generated_share == 1
    style = base_notes.adjust_uncaptioned(settings(preset="style"), ["", ""], beyond=True)
    assert style.preservation.generated_share == 1
    assert changed.model_copy(update={"preservation": usual.preservation}) == usual


def test_captions_bases_and_own_settings_leave_preservation() -> None:
    usual = settings()
    assert base_notes.adjust_uncaptioned(usual, ["", ""], beyond=False) is usual
    for captions in (["rin, smiling", "rin, sad", ""], ["rin, smiling", ""], []):
        assert base_notes.adjust_uncaptioned(usual, captions, beyond=True) is usual
    own = settings(preservation={"others": 0.25})
    assert base_notes.adjust_uncaptioned(own, [""], beyond=True) is own
    other = settings(model={"base": "owner/name"}, preservation={"share": 0.25, "prompts": ["a person"]})
    assert base_notes.adjust_uncaptioned(other, [""], beyond=True) is other


def test_the_plan_says_that_uncaptioned_images_teach_gently(character: Path) -> None:
    reach.keep(character, {path.name: BEYOND for path in reach.sample(character)})
    assert "no caption" not in plan()
    for text in character.glob("*.txt"):
        text.unlink()
    assert "most have no caption, so they are taught more gently" in plan()
    assert "no caption" not in plan(**{"form-preservation-generated-share": 0.25})


def test_train_and_download_say_that_micro_is_for_practice(finished: runs.Run) -> None:
    sentence = base_model_choices.practice("micro")
    assert all(words in sentence for words in ("practice model", "work in diffusers only", "one to download"))
    assert base_model_choices.practice("owner/name") == ""
    assert sentence in plan()
    assert sentence in run_html.status(runs.look(finished))
    assert sentence in download.table(RunWatcher())
    finished.save_config(config.build({"name": "x", "dataset": "rin", "model": {"base": "owner/name"}}))
    assert "practice model" not in run_html.status(runs.look(finished))
    finished.config_file.write_text("{")
    assert "practice model" not in run_html.status(runs.look(finished))
