"""What TensorBoard's own reader finds in a run."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration.training.test_train import losses, settings, stopped_at
from trainer import runs, worker
from trainer.runs import Run


def read(run: Run) -> Any:  # noqa: ANN401 - untyped
    reader = EventAccumulator(str(run.folder / "tensorboard"))
    reader.Reload()
    return reader


@pytest.mark.slow
def test_a_run_is_shown_in_tensorboard(character: Path, tiny_sd: Path) -> None:
    """Once for each step, also of those that a resumed run repeats."""
    options = {"preview__every": 3, "preview__at_start": True, "held_out__share": 0.2, "held_out__every": 3}
    run = runs.create(settings(tiny_sd, training__tensorboard=True, checkpoint__every=2, **options))
    assert worker.work(stopped_at(4, run)) == 0
    assert [scalar.step for scalar in read(run).Scalars("loss")] == [1, 2, 3, 4]
    shutil.rmtree(run.folder / "checkpoints" / "000004")
    assert worker.work(Run(run.folder)) == 0
    reader = read(run)
    scalars = [(scalar.step, scalar.value) for scalar in reader.Scalars("loss")]
    assert (dict(scalars), [step for step, _value in scalars]) == (pytest.approx(losses(run)), [1, 2, 3, 4, 5, 6])
    tags = {"loss", "learning rate", "gradient norm", "seconds per step", "loss of held-out images"}
    assert set(reader.Tags()["scalars"]) == tags
    (tag,) = reader.Tags()["images"]
    assert (tag, [image.step for image in reader.Images(tag)]) == ("rin, seed 1", [0, 3, 6])
    assert "rank = 4" in str(reader.Tensors("settings/text_summary")[0])


def test_without_its_package_it_is_said(character: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = runs.create(settings(tiny_sd, training__tensorboard=True))
    assert worker.work(run) == 2
    state = runs.look(run).state
    assert state.message == "TensorBoard is not installed."
    assert "limner[tensorboard]" in state.remedy
    assert not state.losses
