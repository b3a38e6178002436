"""Held-out images: which, that they are not trained, and that their loss is comparable between steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.training.test_train import assert_resumes, finish, mute, same, settings
from trainer import runs
from trainer.adapter_files import reader
from trainer.data import dataset
from trainer.families import Family
from trainer.runs import Run, archive, checkpoints, events
from trainer.train import train
from trainer.training import held_out
from trainer.training.inputs import encode
from ui.widgets import loss_chart

HELD: dict[str, Any] = {"held_out__share": 0.2, "held_out__every": 2}


def test_some_images_are_held_out_whole_and_by_the_seed(family: Family, character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character, "rin") * 2
    trained, held = held_out.split(examples, settings(tiny_sd, **HELD))
    assert (len(trained), len(held)) == (22, 3), "of 14 images, each seen twice"
    assert not {example.path for example in trained} & {example.path for example in held}
    assert held == held_out.split(examples, settings(tiny_sd, **HELD))[1]
    assert held != held_out.split(examples, settings(tiny_sd, seed=1, **HELD))[1]
    assert held_out.split(examples, settings(tiny_sd)) == (examples, ())
    few = settings(tiny_sd, held_out__share=0.01)
    assert (len(held_out.split(examples, few)[1]), held_out.split(examples[:1], few)) == (1, (examples[:1], ()))
    built = encode.build(family, trained, settings(tiny_sd, **HELD), mute, held=held)
    assert built.held_count == 3
    names = {example.caption for example in held}
    assert all(built.held_batch(index).captions[0].removeprefix("rin, ") in names for index in range(3))


@pytest.mark.slow
def test_the_measured_loss_has_no_dropout_and_changes_nothing(character: Path, tiny_sd: Path) -> None:
    options = {"training__text_encoder": True, "adapter__dropout": 0.3}
    examples = dataset.read(character, "rin")
    run = runs.create(settings(tiny_sd, **HELD, **options))
    expected = finish(run)
    view = runs.look(run)
    measured = view.state.held_out
    assert (list(measured), len(set(measured.values()))) == ([0, 2, 4, 6], 4)
    assert measured[0] == pytest.approx(view.state.losses[1], rel=0.5), "of the same size as the loss of training"
    for last, words in ((0.3, "0.3000; lowest at step 2 (0.2000)"), (0.1, "0.1000, the lowest so far")):
        view.state.held_out.update({0: 0.4, 2: 0.2, 4: 0.25, 6: last})
        chart = loss_chart.chart([("rin", view)])["runs"][0]
        assert chart["held_label"] == f"Held-out images: {words}"
        assert [step for step, _loss in chart["held_out"]] == [0, 2, 4, 6]
    # The same training without the measurements: from the images that were left.
    _trained, held = held_out.split(examples, settings(tiny_sd, **HELD))
    for example in held:
        example.path.rename(example.path.with_suffix(".off"))
    plain = runs.create(settings(tiny_sd, **options))
    assert same(finish(plain), expected)


# With this rate the loss is lowest at step 4, then rises once.
ENDING: dict[str, Any] = HELD | {"held_out__patience": 1, "optimizer__learning_rate": 0.1, "training__steps": 24}


@pytest.mark.slow
def test_a_run_ends_where_the_held_out_loss_no_longer_falls(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, **ENDING | {"checkpoint__every": 1, "checkpoint__keep": 2}))
    expected = finish(run)
    state = runs.look(run).state
    assert (list(state.held_out), min(state.held_out, key=lambda step: state.held_out[step])) == ([0, 2, 4, 6], 4)
    assert (state.end, state.step, state.export) == ("finished", 6, "rin.safetensors")
    sentence = "The run ended at step 6: the loss of the held-out images was lowest at step 4"
    assert state.warnings[-1].startswith(sentence)
    assert [folder.name for folder in checkpoints.folders(run)] == ["000004", "000005", "000006"], "the lowest stays"
    assert run.config().training.steps == 24
    file = reader.read(run.export)
    assert (state.exported, file.metadata["ss_steps"], file.metadata["ss_max_train_steps"]) == (4, "4", "24")
    lowest = load_file(checkpoints.folders(run)[0] / checkpoints.ADAPTER)
    assert all(torch.allclose(lowest[name], tensor.float(), atol=1e-3) for name, tensor in expected.items())
    finish(run)
    assert list(runs.look(run).state.losses) == list(range(1, 7)), "resumed, it is still over"
    assert same(load_file(run.export), expected)
    # More steps are taken when they are asked for.
    archive.extend(run, 1)
    assert (run.config().training.steps, run.config().held_out.patience) == (25, 0)
    shorter = run.config().model_copy(update={"training": run.config().training.model_copy(update={"steps": 10})})
    run.save_config(shorter)
    finish(run)
    state = runs.look(run).state
    assert (state.end, state.step) == ("finished", 10)
    assert not [warning for warning in state.warnings if "held_out.patience" in warning]


@pytest.mark.slow
def test_the_last_adapter_is_exported_if_the_best_is_damaged(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, **ENDING))

    def damage(event: events.Event) -> None:
        if isinstance(event, events.HeldOut) and event.step == 6:
            file = run.folder / "checkpoints" / "000004" / checkpoints.OPTIMIZER
            file.write_bytes(file.read_bytes()[:-1])

    train(run.config(), Run(run.folder, damage))
    state = runs.look(run).state
    assert (state.end, state.exported) == ("finished", 6)
    assert "checkpoint is damaged. The file has the adapter of step 6" in state.warnings[-1]


@pytest.mark.slow
def test_a_resumed_run_ends_where_it_would_have(character: Path, tiny_sd: Path) -> None:
    whole = assert_resumes(settings(tiny_sd, **ENDING, training__ema_decay=0.5), 5)
    (parts,) = [run for run in runs.all_runs() if run != whole]
    assert runs.look(parts).state.held_out == runs.look(whole).state.held_out
    assert runs.look(parts).state.warnings[-1] == runs.look(whole).state.warnings[-1]
