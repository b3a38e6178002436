"""What TensorBoard's own reader finds in a run."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration.training.test_train import losses, settings
from trainer import runs, worker
from trainer.runs import Run, events


def stop_after(step: int, run: Run) -> Run:
    def listen(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == step:
            runs.request(run, "stop")

    return Run(run.folder, listen)


def read(run: Run) -> Any:  # noqa: ANN401 - untyped
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    return found


@pytest.mark.slow
def test_a_run_is_shown_in_tensorboard(character: Path, tiny_sd: Path) -> None:
    """Once for each step, also of those that a resumed run repeats."""
    run = runs.create(settings(tiny_sd, training__tensorboard=True, preview__every=3, preview__at_start=True,
                               held_out__share=0.2, held_out__every=3, checkpoint__every=2))  # fmt: skip
    assert worker.work(stop_after(4, run)) == 0
    first = read(run)
    assert [one.step for one in first.Scalars("loss")] == [1, 2, 3, 4]
    shutil.rmtree(run.folder / "checkpoints" / "000004")
    assert worker.work(Run(run.folder)) == 0
    found = read(run)
    shown = {one.step: one.value for one in found.Scalars("loss")}
    assert shown == pytest.approx(losses(run))
    assert [one.step for one in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert set(found.Tags()["scalars"]) == {
        "loss", "learning rate", "gradient norm", "seconds per step", "loss of held-out images",
    }  # fmt: skip
    (tag,) = found.Tags()["images"]
    assert tag == "rin, seed 1"
    assert [one.step for one in found.Images(tag)] == [0, 3, 6]
    assert "rank = 4" in str(found.Tensors("settings/text_summary")[0])


def test_without_its_package_it_is_said(character: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = runs.create(settings(tiny_sd, training__tensorboard=True))
    assert worker.work(run) == 2
    state = runs.look(run).state
    assert state.message == "TensorBoard is not installed."
    assert "limner[tensorboard]" in state.remedy
    assert not state.losses
