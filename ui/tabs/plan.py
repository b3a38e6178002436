"""Plan of a run before its start: steps, duration, memory, and what to know about the images."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, TypedDict

import gradio as gr
import psutil

from trainer import paths, runs, storage
from trainer.base_models import MICRO, detect, layer_shapes
from trainer.config import TrainConfig, adjustments, base_notes
from trainer.data import dataset
from trainer.data.dataset import Example
from trainer.errors import UserError
from trainer.i18n import _, duration, ngettext
from trainer.machine import card_memory, pace
from ui.state import documentation, page_memory, warm_worker
from ui.state.answers import ENTRIES, Answers
from ui.tabs import base_model
from ui.templates import RichText, render, rich_text
from ui.widgets import settings_form

EFFORTS = {"quick": (_("Quick look"), 0.4), "balanced": (_("Balanced"), 1.0), "thorough": (_("Thorough"), 2.0)}
VAE = "form-model-vae"
LONG = 12 * 3600  # seconds of a run on a processor from which the plan names another way
RENTED = "docs/rented-gpu.md"
LITTLE_SPACE = 2 * 2**30  # bytes of free disk space below which the plan warns
Sentence = str | RichText


class Plan(TypedDict):
    """Values of `train.Tab.planned`: the efforts have their durations, the notes stand at the fields.

    The summary says why if the button that starts a run is off.
    """

    summary: str
    cautions: str
    effort: gr.Radio | dict[str, Any]
    notes: dict[str, Any]
    start: dict[str, Any]


def plan(answers: Answers) -> Plan:
    """Return what a start would do, or why there is nothing to train."""
    notes = answers.notes()
    examples = page_memory.examples(answers.project)
    if not examples:
        return _no_plan(_("Add images first."), notes)
    base = base_model.look(answers.base, answers.own.get(VAE))
    if not base.is_usable:
        return _no_plan(base.text, notes)
    try:
        config = settings_form.build(ENTRIES, answers.data())
        taught = dataset.read_subjects(config.taught) if config.subjects else examples
        images = adjustments.trained_count(config, taught)
    except UserError as error:
        return _no_plan(str(error), notes, is_on=True)  # a click says it aloud
    similar = runs.find_similar(config)
    size, *costs = _summary(config, taught, images, similar)
    summary = render("plan.html", size=size, costs=costs)
    cautions = render("paragraphs.html", texts=_cautions(config))
    effort = _efforts(config, answers, images, similar)
    return Plan(summary=summary, cautions=cautions, effort=effort, notes=notes, start=gr.update(interactive=True))


def _no_plan(reason: str, notes: dict[str, Any], *, is_on: bool = False) -> Plan:
    start = gr.update(interactive=is_on)
    return Plan(summary=render("text.html", text=reason), cautions="", effort=dict(gr.skip()), notes=notes, start=start)


def _summary(
    config: TrainConfig, examples: Sequence[Example], images: int, similar: runs.View | None
) -> list[Sentence]:
    training = adjustments.complete(config, images).training
    steps = training.steps
    exposures = steps * training.batch_size * training.gradient_accumulation / images
    seen = _seen(exposures)
    if similar and similar.seconds_per_step:
        seen = _("{seen}, in about {time} here", seen=seen, time=duration(similar.seconds_per_step * steps))
        costs: Sequence[Sentence] = [_memory(similar)]
    else:
        costs = _computed(config, steps)
    size = rich_text(
        "<b>{images}, {steps} on {base}</b>: {seen}.",
        images=ngettext("{n} image", "{n} images", images),
        steps=ngettext("{n} step", "{n} steps", steps),
        base=PurePath(config.model.base).name,
        seen=seen,
    )
    subjects = _subjects(examples, exposures) if config.subjects else ""
    return [sentence for sentence in (size, subjects, *costs, _text_encoder(config), _disk()) if sentence]


def _seen(exposures: float) -> str:
    """Say how often a run sees each image."""
    if exposures < 1:
        return _("not every image is seen")
    if exposures < 1.5:
        return _("each image is seen about once")
    return ngettext("each image is seen about {n} time", "each image is seen about {n} times", round(exposures))


def _computed(config: TrainConfig, steps: int) -> list[Sentence]:
    """Say how long a run takes that is like none before, as computed for this processor; a card tells it soon."""
    seconds = pace.seconds_per_step(config)
    if not seconds:
        pending = _("An estimate of the duration appears after the first steps.")
        if warm_worker.is_measuring():
            pending = _("The duration is being estimated.")
        return [card_memory.describe(config), pending]
    least, most = (duration(steps * each) for each in seconds)
    sentences: list[Sentence] = [
        _("On this processor the steps take {least} to {most}, as computed.", least=least, most=most)
    ]
    if steps * seconds[0] > LONG:
        link = render("link.html", address=f"{documentation.ADDRESS}{RENTED}", text=_("rent a graphics card"))
        sentences.append(rich_text("That is long: practice with micro, or {rent_one}.", rent_one=link))
    return sentences


def _subjects(examples: Sequence[Example], exposures: float) -> str:
    """Return how often each subject's images are seen, from examples that stand there once for each repeat."""
    parts = []
    for trigger in dict.fromkeys(example.trigger for example in examples):
        paths_seen = [example.path for example in examples if example.trigger == trigger]
        repeats = len(paths_seen) / len(set(paths_seen))
        parts.append(_("{trigger} {times} times", trigger=trigger, times=round(exposures * repeats)))
    return _("By subject: {parts}.", parts=", ".join(parts))


def _disk() -> str:
    """Say that the disk is nearly full; "" if it is not."""
    free = storage.free_space(paths.outputs())
    if free >= LITTLE_SPACE:
        return ""
    return _("Only {room:.0f} GB of disk space is free.", room=free / 2**30)


def _text_encoder(config: TrainConfig) -> str:
    """Describe what training the text encoder costs; it stays in memory, as no caption can be encoded ahead."""
    if not config.training.text_encoder or config.model.base == MICRO:
        return ""
    detected = detect.glance(config.model.base, config.model.revision)
    if detected is None:
        return ""
    return _(
        "The text encoder is trained too: it takes about {memory:.1f} GB more memory in half precision, and each step "
        "takes a few percent longer.",
        memory=2 * layer_shapes.text_encoder_size(detected.family) / 2**30,
    )


def _cautions(config: TrainConfig) -> list[str]:
    """List cautions about the base; what the built-in one is for is said below its name."""
    base = detect.glance(config.model.base, config.model.revision)
    return base_notes.find(config, base) if base else []


def _memory(similar: runs.View) -> str:
    """Describe the memory that a similar run took, and for a CPU how much is free now; the page cannot ask a GPU."""
    peak = similar.state.memory / 2**30
    if similar.state.device != "CPU":
        return _("A similar run took {memory:.1f} GB of memory.", memory=peak)
    free = psutil.virtual_memory().available / 2**30
    return _("A similar run took {memory:.1f} GB of memory; {free:.0f} GB are free.", memory=peak, free=free)


def _efforts(config: TrainConfig, answers: Answers, images: int, similar: runs.View | None) -> gr.Radio:
    """Return the choice of an effort: each with its duration if that is known, and the one that the form asks for."""
    standard = settings_form.standard(answers.preset, answers.base).training.exposures
    pace = similar.seconds_per_step if similar else None
    labels, chosen = [], None
    for key, (title, factor) in EFFORTS.items():
        exposures = round(standard * factor)
        if pace:
            training = config.training.model_copy(update={"exposures": exposures, "steps": 0})
            seconds = pace * adjustments.planned_steps(training, images, len(config.taught))
            title = _("{effort}\nabout {time}", effort=title, time=duration(seconds))
        labels.append((title, key))
        if config.training.steps == 0 and config.training.exposures == exposures:
            chosen = key
    return gr.Radio(labels, value=chosen)
