"""Plan of a training before its start: duration, memory, and what to know about the images."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import psutil

from trainer import paths, runs, storage
from trainer.base_models import MICRO, detect, layer_shapes
from trainer.config import TrainConfig, adjustments, uncaptioned
from trainer.data import dataset, reach
from trainer.data.dataset import Example
from trainer.data.problems import KINDS
from trainer.errors import UserError
from trainer.i18n import count, say
from ui.state import base_model_choices
from ui.state.answers import ENTRIES, Answers, settings
from ui.widgets import run_html, settings_form

EFFORTS = {"quick": (say("Quick look"), 0.4), "balanced": (say("Balanced"), 1.0), "thorough": (say("Thorough"), 2.0)}
ROOM = 2 * 2**30  # bytes of the disk below which it is said that there is little


def plan(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """Values of `Tab.planned`: what a start would do in a few sentences, what each effort takes here, and conflicts."""
    answers = Answers.of(*given)
    if not answers.project:
        return [say("Make a project and add pictures first."), gr.skip(), {}]
    folder = paths.datasets() / answers.project
    examples = dataset.read(folder) if paths.NAME.fullmatch(answers.project) and folder.is_dir() else ()
    pictures = len(examples)
    if not pictures:
        return [say("There are no pictures in this project yet. Add some in the first tab."), gr.skip(), {}]
    named = replace(answers, name=answers.name or "x")
    try:
        config = settings(named)
    except UserError as error:
        return [escape(str(error)), gr.skip(), settings_form.conflicts(ENTRIES, named.data())]
    before = runs.find_similar(config)
    pace = before.seconds_per_step if before else None
    standard = settings_form.standard(answers.preset, answers.base)
    sentences = " ".join([_summary(config, pictures, before), *_cautions(config, folder, examples)])
    return [sentences, _efforts(config, pictures, standard, pace), {}]


def _summary(config: TrainConfig, pictures: int, before: runs.View | None) -> str:
    training = config.training
    steps = adjustments.planned_steps(training, pictures)
    times = round(steps * training.batch_size * training.accumulation / pictures)
    if before and before.seconds_per_step:
        facts = [
            count(
                "<b>{n} picture, {steps} steps</b>: each picture is seen about {times} times, about {time} here.",
                "<b>{n} pictures, {steps} steps</b>: each picture is seen about {times} times, about {time} here.",
                pictures, steps=steps, times=times, time=run_html.seconds(before.seconds_per_step * steps),
            ),
            _memory(before),
        ]  # fmt: skip
    else:
        facts = [
            count(
                "<b>{n} picture, {steps} steps</b>: each picture is seen about {times} times.",
                "<b>{n} pictures, {steps} steps</b>: each picture is seen about {times} times.",
                pictures, steps=steps, times=times,
            ),
            say("How long it takes is known after the first steps."),
        ]  # fmt: skip
    if told := _text_encoder(config):
        facts.append(told)
    free = storage.free_space(paths.outputs())
    room = say("{room:.0f} GB of the disk are free.", room=free / 2**30)
    if free < ROOM:
        room = say("{room:.0f} GB of the disk are free, which is little.", room=free / 2**30)
    return " ".join([*facts, room])


def _text_encoder(config: TrainConfig) -> str:
    """Describe what training the text encoder costs; it stays in memory, as no caption can be encoded ahead."""
    seen = None if config.model.base == MICRO else detect.glance(config.model.base, config.model.revision)
    if not config.training.text_encoder or seen is None:
        return ""
    return say(
        "The text encoder learns too: it takes about {memory:.1f} GB more memory in half precision, and steps take a "
        "few percent longer.",
        memory=2 * layer_shapes.text_encoder_size(seen.family) / 2**30,
    )


def _cautions(config: TrainConfig, folder: Path, examples: Sequence[Example]) -> list[str]:
    """List cautions for the built-in base: what it is for, and whether it can draw these images."""
    if config.model.base != MICRO:
        return []
    sentences = [base_model_choices.practice(MICRO)]
    beyond = reach.is_beyond(reach.known(folder))
    if beyond:
        kind = KINDS["beyond micro"]
        sentences.insert(0, f"<b>{say(kind.title)}</b> {say(kind.effect)}")
    if uncaptioned.adjust(config, [example.caption for example in examples], beyond=beyond) != config:
        sentences.append(uncaptioned.note())
    return [f"<p>{sentence}</p>" for sentence in sentences]


def _memory(before: runs.View) -> str:
    """The memory that the run before took, and what of it is free here; of a GPU's the page knows nothing."""
    took = before.state.memory / 2**30
    if before.state.device != "CPU":
        return say("It took {memory:.1f} GB of memory the last time.", memory=took)
    free = psutil.virtual_memory().available / 2**30
    return say("It took {memory:.1f} GB of memory the last time; {free:.0f} GB are free.", memory=took, free=free)


def _efforts(config: TrainConfig, pictures: int, standard: TrainConfig, pace: float | None) -> Any:  # noqa: ANN401 - a component's update
    """The choice of how long, each with its time where that is known, and which of them the form stands for."""
    labels, chosen = [], None
    for key, (words, factor) in EFFORTS.items():
        seen = round(standard.training.exposures * factor)
        training = config.training.model_copy(update={"exposures": seen, "steps": 0})
        took = run_html.seconds(pace * adjustments.planned_steps(training, pictures)) if pace else ""
        labels.append((say("{effort}, about {time}", effort=words, time=took) if took else words, key))
        if config.training.steps == 0 and config.training.exposures == seen:
            chosen = key
    return gr.Radio(labels, value=chosen)
