"""Try out tab: images from a prompt, with any adapter at any strength, beside those without it."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer import paths
from trainer.base_models import MICRO
from trainer.config import PictureConfig, prompt_lines
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import archive, cards
from ui.state import adapter_choices, page_folders, pending_uploads, run_actions
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import comparison, measuring, sample_form, sample_images
from ui.tabs.comparison import Cell
from ui.tabs.sample_form import NO_ADAPTER, OTHERS, SampleForm, with_form
from ui.tabs.sample_images import Sheet
from ui.widgets import settings_form
from ui.widgets.handlers import QUIET, UNQUEUED, handled
from ui.widgets.templates import read

PAUSE = 0.3  # seconds between two updates while an image is generated
SIDE = configs.micro_resolution()
MINIATURE = _(
    "Micro is a miniature for trying things out: portraits of {side} x {side} pixels, shown enlarged.", side=SIDE
)
EMPTY = f"<div class='empty'>{_('Choose an adapter, type a prompt, and generate an image.')}</div>"


@dataclass(frozen=True)
class Tab:
    """Inputs and outputs of `offer`; the first input is the adapter."""

    inputs: list[Any]
    offered: list[Any]


def build(sampler: SamplerClient, watch: RunWatcher) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(elem_id="try-columns", elem_classes="columns"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            form = sample_form.build()
        with gr.Column(scale=3, min_width=320, elem_classes="canvas"):
            note = gr.HTML(elem_id="try-note", elem_classes="quiet")
            hold = gr.Button(_("Pause training for now"), size="sm", visible=False, elem_id="hold-training")
            result = gr.HTML(EMPTY, elem_id="result", js_on_load=read("sheet.js"))
            measuring.build(form.adapter, sampler)
            recent = gr.HTML(elem_id="made")

    def stream(*values: object) -> Iterator[tuple[Any, ...]]:
        filled = SampleForm.from_form(values)
        for html, files, seed in generate(sampler, watch, filled):
            # Only a seed that was drawn here is sent: the user may have typed another one meanwhile.
            yield html, files, seed if filled.new_seed else gr.skip()

    generating = gr.on(
        [form.generate.click, form.strength.change, form.view.input],
        handled(stream),
        form.inputs,
        [result, form.files, form.seed],
        trigger_mode="always_last",
        concurrency_id="sampler",
        concurrency_limit=1,
        **QUIET,
    )
    generating.then(handled(sample_images.recent), None, recent, **QUIET)
    form.cancel.click(sampler.cancel, None, None, **UNQUEUED)
    hold.click(handled(lambda: toggle_training(watch, sampler)), None, [note, hold], **QUIET)
    others = [adapter for adapter, _unused in form.others]
    inputs = [*form.inputs, form.defaults]
    suited = [form.steps, form.guidance, form.clip_skip]
    offered = [form.adapter, form.prompt, form.defaults, *suited, note, hold, recent, *others]
    for chosen in (form.adapter.input, form.base.blur):
        chosen(with_form(lambda filled, defaults: offer(watch, filled, defaults)), inputs, offered, **QUIET)

    def restore(file: str | None) -> list[Any]:
        restored = settings_from(file, watch)
        values = [getattr(restored, name) for name in RESTORED]
        return [*values, *(value for other in restored.others for value in other)]

    fields = [getattr(form, name) for name in RESTORED]
    form.restore.upload(
        handled(restore), form.restore, [*fields, *(part for other in form.others for part in other)], **QUIET
    )
    return Tab(inputs, offered)


RESTORED = (
    "adapter",
    "prompt",
    "strength",
    "seed",
    "new_seed",
    "steps",
    "guidance",
    "clip_skip",
    "size",
    "negative",
    "base",
    "vae",
)


# Choices --------------------------------------------------------------------------------------------------------


def offer(watch: RunWatcher, form: SampleForm, defaults: tuple[str, float, float, float]) -> list[Any]:
    """Return values of `Tab.offered`: the adapters, and a prompt, steps, guidance and clip skip that suit the choice.

    A field is left alone if the user changed it since `defaults` were offered, or if it would not change: something
    may have been typed in it meanwhile.
    """
    choices = adapter_choices.choices(watch)
    keys = [key for _, key in choices]
    adapter = form.adapter if form.adapter in keys else ""
    adapter = adapter or keys[0]
    config = usual_settings(adapter, form.base)
    preview = config.preview
    prompt = next((prompt_lines.parse(line).prompt for line in preview.prompts), config.trigger)
    suitable = (prompt, preview.steps, preview.guidance, config.model.clip_skip)
    values = (form.prompt.strip(), form.steps, form.guidance, form.clip_skip)
    sent = [_update(*change) for change in zip(values, defaults, suitable, strict=True)]
    others = []
    for key, _strength in form.others:
        others.append(gr.Dropdown([*choices[:-1], NO_ADAPTER], value=key if key in keys else ""))
    return [
        gr.Dropdown(choices, value=adapter),
        sent[0],
        suitable,
        *sent[1:],
        *_notes(watch, small=config.model.base == MICRO),
        sample_images.recent(),
        *others,
    ]


def _update(value: object, before: object, suitable: object) -> object:
    """Return the value to send to a field, or `gr.skip()`."""
    is_own = bool(value) and value != before
    if is_own or not suitable or suitable == value:
        return gr.skip()
    return suitable


def _notes(watch: RunWatcher, *, small: bool) -> list[Any]:
    """Return the notes above the image, and the button that pauses or continues an active training."""
    notes, active = [], watch.active()
    label = _("Pause training for now")
    shares = active is not None and (active.paused or not cards.has_spare())
    if small:
        notes.append(MINIATURE)
    if active and active.paused:
        notes.append(_("Training is paused."))
        label = _("Continue training")
    elif shares:
        notes.append(_("A training run is active: generating images is slower, and so is the training."))
    return ["".join(f"<p>{note}</p>" for note in notes), gr.Button(label, visible=shares)]


def toggle_training(watch: RunWatcher, sampler: SamplerClient) -> list[Any]:
    """Pause the run that trains, or let it continue."""
    active = watch.active()
    if active and active.status == "running":
        run_actions.pause(active.run, sampler, go_on=active.paused)
    return _notes(watch, small=True)


def usual_settings(adapter: str, base: str = "") -> configs.TrainConfig:
    """Return the settings to generate with: those of the adapter's run, unless another base model is named.

    Otherwise what suits that base, or the built-in one; the clip skip remains that of the adapter.
    """
    run = adapter_choices.run_of(adapter)
    base = paths.unquoted(base)
    if run and not base:
        return run.config()
    config = settings_form.standard("character", base)
    clip_skip = run.config().model.clip_skip if run else adapter_choices.clip_skip(adapter)
    model = config.model.model_copy(update={"clip_skip": clip_skip or config.model.clip_skip})
    return config.model_copy(update={"model": model})


def settings_from(path: str | None, watch: RunWatcher) -> SampleForm:
    """Return the form that an image was generated from, read from the image; the uploaded file is deleted.

    Raises:
        UserError: it was not generated here, or with an adapter that is no longer here.
    """
    settings = None
    if path:
        try:
            settings = sample_images.settings_of(Path(path))
        finally:
            pending_uploads.discard([Path(path)])
    if settings is None:
        raise UserError(
            "This image has no settings in it.", "Use a PNG file that was generated here and saved without changes."
        )
    keys = {}
    for _label, key in reversed(adapter_choices.choices(watch)):
        if key:
            keys[archive.display_name(adapter_choices.find(key))] = key
    for name, _strength in settings["adapters"]:
        if name not in keys:
            raise UserError(
                "The adapter {name} is no longer here.", "Add it in the Download tab, then try again.", name=name
            )
    adapters = [(keys[name], strength) for name, strength in settings["adapters"]]
    others = [*adapters[1 : 1 + OTHERS], *[("", 1.0)] * OTHERS][:OTHERS]
    adapter, strength = adapters[0] if adapters else ("", 0.0)
    size = ""
    if settings["width"] and settings["height"]:
        size = f"{settings['width']} x {settings['height']}"
    return SampleForm(
        adapter=adapter,
        strength=strength,
        size=size,
        base="" if adapters else settings["base"],
        others=tuple(others),
        **{name: settings[name] for name in ("prompt", "seed", "steps", "guidance", "clip_skip", "negative")},
    )


# Images ---------------------------------------------------------------------------------------------------------


def generate(sampler: SamplerClient, watch: RunWatcher, form: SampleForm) -> Iterator[tuple[str, Sequence[str], float]]:
    """Generate the images of a view; yields HTML as they appear, the files on the page, and the seed.

    Raises:
        UserError: there is no prompt, or a value is out of bounds.
    """
    if not form.prompt.strip():
        raise UserError("There is no prompt yet.", "Describe what the image should show.")
    seed = random.SystemRandom().randrange(2**31) if form.new_seed else form.seed
    model = base_of(form.adapter, form.base, form.vae)
    axes = comparison.Axes(form.table_rows, form.table_chosen, form.table_strengths)
    cells = comparison.cells(form.view, form.adapter, float(form.strength), watch, axes)
    requests = [request_of(form, cell, model, seed) for cell in cells]
    run = adapter_choices.run_of(form.adapter)
    sheet = Sheet(form.view, cells, _facts(requests[0]), small=model.base == MICRO, run=run.id if run else "")
    if len(form.files) == len(cells):
        sheet.files = list(form.files)
    page_folders.sample_images().mkdir(parents=True, exist_ok=True)
    canceled = sampler.canceled
    for number, request in enumerate(requests):
        try:
            for note in _progress(sampler, request):
                yield sheet.html(busy=number, note=note), form.files, seed
        except UserError:
            if sampler.canceled == canceled:
                raise
        if sampler.canceled != canceled:
            sheet.facts += ". " + _("Canceled")
            # Images of an earlier request do not stand beside those of this one.
            sheet.files[number:] = [""] * (len(cells) - number)
            break
        sheet.files[number] = Path(request.out).name
    sample_images.prune()
    yield sheet.html(), sheet.files, seed


def _facts(request: PictureConfig) -> str:
    return _(
        "Seed {seed}, {steps} steps, guidance {guidance:g}",
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
    )


def _progress(sampler: SamplerClient, request: PictureConfig) -> Iterator[str]:
    """Generate an image unless it exists; yields a sentence on the progress now and then."""
    if Path(request.out).is_file():
        return
    for done, total in _throttled(sampler.generate(request)):
        if done:
            yield _("Generating, step {step} of {steps}", step=done, steps=total)
        else:
            yield _("Getting ready (the first image takes longer)")


def _throttled(progress: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Drop most steps: a browser that redraws the page for each falls behind, and a click on Cancel with it."""
    latest = 0.0
    for done, total in progress:
        if not done:
            yield done, total
        elif time.monotonic() - latest >= PAUSE:
            latest = time.monotonic()
            yield done, total


def request_of(form: SampleForm, cell: Cell, model: configs.ModelConfig, seed: float) -> PictureConfig:
    """Return the validated request for one image of a view."""
    adapters = [(cell.key, cell.strength), *form.others]
    width, height = sample_images.size(form.size)
    return sample_images.request(
        base=model.base,
        vae=model.vae,
        adapters=[(adapter_choices.find(key), strength) for key, strength in adapters if key],
        prompt=cell.prompt or form.prompt.strip(),
        negative=form.negative.strip(),
        seed=seed if cell.seed is None else cell.seed,
        steps=form.steps,
        guidance=form.guidance,
        clip_skip=form.clip_skip,
        width=width,
        height=height,
        revision=model.revision,
        objective=model.prediction_type,
    )


def base_of(adapter: str, name: str = "", vae: str = "") -> configs.ModelConfig:
    """Return the base model to generate with, and its VAE: those that are named, else those of the adapter's run.

    Raises:
        UserError: a name cannot be one of a base model or a VAE.
    """
    run = adapter_choices.run_of(adapter)
    model = run.config().model if run else configs.ModelConfig()
    if name := paths.unquoted(name):
        model = configs.check(configs.ModelConfig, {"base": name})
    if vae := paths.unquoted(vae):
        model = configs.check(configs.ModelConfig, {**model.model_dump(), "vae": vae})
    return model
