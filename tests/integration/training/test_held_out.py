"""Held-out images: which, that they are not trained, and that their loss is comparable between steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.training.test_train import finish, is_third, quiet, same, settings
from trainer import families, runs
from trainer.config import ModelConfig
from trainer.data import dataset
from trainer.runs import Run
from trainer.train import train
from trainer.training import encode, held_out
from ui.widgets import loss_chart

HELD: dict[str, Any] = {"held_out__share": 0.2, "held_out__every": 2}


def test_some_images_are_held_out_whole_and_by_the_seed(character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character, "rin") * 2
    trained, held = held_out.split(examples, settings(tiny_sd, **HELD))
    assert (len(trained), len(held)) == (22, 3), "of 14 images, each seen twice"
    assert not {example.path for example in trained} & {example.path for example in held}
    assert held == held_out.split(examples, settings(tiny_sd, **HELD))[1]
    assert held != held_out.split(examples, settings(tiny_sd, seed=1, **HELD))[1]
    assert held_out.split(examples, settings(tiny_sd)) == (examples, ())
    few = settings(tiny_sd, held_out__share=0.01)
    assert len(held_out.split(examples, few)[1]) == 1
    assert held_out.split(examples[:1], few) == (examples[:1], ())


@pytest.mark.parametrize("text_encoder", [False, True])
def test_its_loss_is_measured_without_dropout_and_changes_nothing(
    character: Path, tiny_sd: Path, text_encoder: bool
) -> None:
    options = {"training__text_encoder": text_encoder, "adapter__dropout": 0.3}
    examples = dataset.read(character, "rin")
    run = runs.create(settings(tiny_sd, **HELD, **options))
    expected = finish(run)
    measured = runs.look(run).state.held_out
    assert list(measured) == [0, 2, 4, 6]
    assert len(set(measured.values())) == 4
    # The same training without the measurements: from the images that were left.
    _trained, held = held_out.split(examples, settings(tiny_sd, **HELD))
    for example in held:
        example.path.rename(example.path.with_suffix(".off"))
    plain = runs.create(settings(tiny_sd, **options))
    assert same(finish(plain), expected)


def test_it_is_the_loss_of_the_base_before_the_first_step(character: Path, tiny_sd: Path) -> None:
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    config = settings(tiny_sd, **HELD)
    trained, held = held_out.split(dataset.read(character, "rin"), config)
    built = encode.build(family, trained, config, quiet, held=held)
    assert built.held_count == 3
    names = {example.caption for example in held}
    assert all(built.held_batch(index).captions[0].removeprefix("rin, ") in names for index in range(3))
    run = runs.create(config)
    finish(run)
    own = runs.look(run).state.losses[1]
    assert runs.look(run).state.held_out[0] == pytest.approx(own, rel=0.5), "of the same size as the loss of training"


def test_a_resumed_run_measures_the_same(character: Path, tiny_sd: Path) -> None:
    whole, parts = (runs.create(settings(tiny_sd, **HELD, training__ema_decay=0.5)) for _ in range(2))
    finish(whole)
    train(parts.config(), Run(parts.folder, lambda event: runs.request(parts, "stop") if is_third(event) else None))
    finish(parts)
    assert runs.look(parts).state.held_out == runs.look(whole).state.held_out


def test_the_chart_says_from_where_on_it_rises(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, **HELD))
    finish(run)
    view = runs.look(run)
    chart = loss_chart.chart([("rin", view)])["runs"][0]
    assert [step for step, _loss in chart["held_out"]] == [0, 2, 4, 6]
    view.state.held_out.update({0: 0.4, 2: 0.2, 4: 0.25, 6: 0.3})
    label = loss_chart.chart([("rin", view)])["runs"][0]["held_label"]
    assert label == "Held-out images: 0.3000; lowest at step 2 (0.2000)"
    view.state.held_out[6] = 0.1
    label = loss_chart.chart([("rin", view)])["runs"][0]["held_label"]
    assert label == "Held-out images: 0.1000, the lowest so far"
    json.dumps(chart)
