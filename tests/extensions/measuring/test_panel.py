"""Measured checkpoints on the page: started for the run of an adapter, followed, stopped, and shown as a table."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from limner_extensions.measuring import endpoints, panel
from limner_extensions.measuring import job as jobs
from limner_extensions.measuring.html import section
from limner_extensions.measuring.job import MeasureConfig
from limner_extensions.measuring.table import Figure, Row, Table
from tests.tiny_feature_models import make_dinov2
from trainer import paths, runs
from trainer.errors import UserError
from trainer.runs import Run, archive, events
from ui.state import page_memory
from ui.state.sampler_client import SamplerClient


def figures(value: float) -> dict[Any, Figure]:
    return {"likeness": Figure(value, value - 0.1, value + 0.1), "leak": Figure(value / 2, 0.0, value)}


WORSE = {"likeness": Figure(-0.2, -0.3, -0.1), "leak": Figure(-0.1, -0.2, 0.1)}
ROWS = (Row(0, 0.0, figures(0.0)), Row(2, 1.0, figures(0.5), WORSE), Row(5, 1.0, figures(0.7)))
MISSING: dict[Any, Any] = {"adherence": "one prompt", "copying": "few images", "drift": "no trigger"}
TABLE = Table("<CLIP>", 8, 2, 14, ROWS, MISSING)


@pytest.fixture
def measurable(finished: Run) -> Run:
    """A finished run with the checkpoints of steps 2 and 5."""
    folder = finished.folder / "checkpoints" / "000002"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"b")
    return finished


def start(key: str, started: list[Run], **settings: Any) -> list[Any]:  # noqa: ANN401 - any settings
    return panel.start(key, MeasureConfig(**settings), SamplerClient(), started.append)


def test_the_table_is_on_the_page_in_reports_and_in_the_api(measurable: Run) -> None:
    assert section(measurable) == ("Checkpoints, measured", "")
    made = jobs.create(measurable, MeasureConfig())
    made.report(events.Started(step=0, steps=1, pid=1, device="CPU"))
    made.report(events.Finished(step=1, export=""))
    jobs.save_table(made, TABLE)
    assert jobs.read_table(measurable) == TABLE
    html, _begin, stop, timer = panel.draw(measurable.id).values()
    assert (stop.visible, timer.active) == (False, False)
    some = ["Base model", "step 2", "<b>0.70</b>", "(0.60 to 0.80)", "clearly worse: Likeness", "&lt;CLIP&gt;"]
    for words in (*some, "Adherence is missing: There is only one prompt."):
        assert words in html, words
        assert words in section(measurable)[1], words
    assert "<b>0.25</b>" not in html, "its difference from the last may be chance"
    assert endpoints.measured(measurable.id)["table"]["rows"][2]["figures"]["leak"]["value"] == 0.35
    facts = '"features": "x", "prompts": 1, "seeds": 1, "references": 1'
    for broken in ("{}", f'{{{facts}, "rows": [{{"step": 1, "strength": 1, "figures": {{}}}}]}}'):
        (made.folder / "table.json").write_text(broken)
        assert jobs.read_table(measurable) is None


def test_an_adapter_from_elsewhere_has_no_checkpoints(home: Path) -> None:
    for key in ("", "kept:other", None):
        html, begin, stop, timer = panel.draw(key).values()
        assert "trained here" in html
        assert (begin.interactive, stop.visible, timer.active) == (False, False, False)
    with pytest.raises(UserError, match="no checkpoints to compare"):
        start("", [])


def test_the_feature_model_is_remembered_or_refused(measurable: Run, tmp_path: Path) -> None:
    started: list[Run] = []
    with pytest.raises(UserError, match="There is no feature model 'nothing'"):
        start(measurable.id, started, features="/nowhere/nothing")
    paths.models().mkdir()
    listed, elsewhere = make_dinov2(paths.models() / "dino"), make_dinov2(tmp_path / "other")
    assert panel.show(measurable.id)["features"].value == ""
    start(measurable.id, started, features=str(elsewhere))
    chosen = panel.show(measurable.id)["features"]
    assert chosen.value == page_memory.feature_model() == str(elsewhere)
    assert [folder for _label, folder in chosen.choices] == ["", str(listed), str(elsewhere)]


def test_a_run_that_is_being_measured_is_not_moved(measurable: Run) -> None:
    made = jobs.create(measurable, MeasureConfig())
    with FileLock(made.lock):
        for change in (lambda: archive.delete(measurable), lambda: archive.rename(measurable, "other")):
            with pytest.raises(UserError, match="are being measured"):
                change()
    assert archive.rename(measurable, "other") in runs.all_runs()
