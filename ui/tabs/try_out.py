"""Try out tab: images from a prompt, with any adapter at any strength, beside those without it."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer import extension, paths
from trainer.base_models import MICRO, detect
from trainer.config import PictureConfig, prompt_lines
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import archive, cards
from ui.state import adapter_choices, base_model_choices, pending_uploads, run_actions
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import comparison, sample_form, sample_images
from ui.tabs.comparison import Cell
from ui.tabs.sample_form import DEFAULTS, NO_ADAPTER, OTHERS, Progress, SampleForm
from ui.tabs.sample_images import Sheet
from ui.templates import render
from ui.widgets import run_html, settings_form
from ui.widgets.handlers import CHOICE, VIEW, Handler, Untyped, listen, listen_at_end
from ui.widgets.scripts import read

WAITING = 16  # pages that wait for the images of others; in the queue of Gradio, where more wait, none can cancel
PAUSE = 0.3  # seconds between two updates while an image is generated
SIDE = configs.micro_resolution()
MINIATURE = _(
    "Micro is a miniature for trying things out: portraits of {side} x {side} pixels, shown enlarged.", side=SIDE
)
PAUSE_TRAINING, GO_ON = _("Pause training for now"), _("Continue training")
ASK = "(sheet, ...form) => [window.limnerSheet.ask(), ...form]"
ANSWERED = "() => window.limnerSheet.end()"
LATEST = "(progress) => [progress, window.limnerSheet.latest()]"
EMPTY = render("empty.html", text=_("Choose an adapter, type a prompt, and generate an image."))


SUITED = ("prompt", "steps", "guidance", "clip_skip")
FILLED = (*SUITED, "defaults")


@dataclass(frozen=True)
class Tab:
    """The components that `offer` takes and fills; see `offer_on`."""

    form: sample_form.Components
    takes: Mapping[str, Any]
    offered: Mapping[str, Any]


def build(project: gr.Textbox, sampler: SamplerClient, watch: RunWatcher) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(elem_id="try-columns", elem_classes="columns"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            form = sample_form.build()
        with gr.Column(scale=3, min_width=320, elem_classes="canvas"):
            note = gr.HTML(elem_id="try-note", elem_classes="quiet")
            hold = gr.Button(PAUSE_TRAINING, size="sm", visible=False, elem_id="hold-training")
            result = gr.HTML(EMPTY, elem_id="result", js_on_load=read("sheet.js"))
            previews = gr.HTML(elem_id="try-previews")  # until something is generated; see style.css
            for draw in extension.panels("try-out"):
                draw(form.adapter, sampler, watch)
            recent = gr.HTML(elem_id="made")
    generating = listen(
        [form.generate.click, form.prompt.submit, form.strength.change, form.view.input],
        partial(_generate, sampler, watch),
        {"sheet": gr.JSON(visible=False), "form": form.form},
        {"result": result, "files": form.files, "seed": form.seed},
        kind=CHOICE,
        concurrency_limit=WAITING,
        js=ASK,
    )
    listen_at_end(generating, None, js=ANSWERED)
    listen_at_end(generating, lambda: {"recent": sample_images.recent()}, {}, {"recent": recent})
    seen = {"progress": form.progress, "sheet": gr.JSON(visible=False)}
    listen(form.cancel.click, partial(cancel, sampler), seen, kind=VIEW, js=LATEST)
    notes = {"note": note, "hold": hold}
    listen(hold.click, partial(hold_training, watch, sampler), {"form": form.form, "label": hold}, notes)
    drawn = {"recent": recent, "previews": previews, **notes}
    tab = Tab(form, {"project": project, "form": form.form}, {**drawn, **form.named(*FILLED, "adapter", "others")})
    offer_on([form.adapter.input, form.base.blur], partial(offer, watch), tab)
    restored = form.named(*RESTORED, "others", "strengths")
    takes = {"file": form.restore}
    listen(form.restore.upload, lambda *, file: _restored(settings_from(file, watch)), takes, restored)
    return tab


def offer_on(event: Untyped, handler: Handler, tab: Tab, **others: Untyped) -> Untyped:
    """Let an event offer what suits the chosen adapter; `others` are components that a handler takes besides."""
    return listen(event, handler, {**tab.takes, **others}, tab.offered, kind=CHOICE)


def _generate(sampler: SamplerClient, watch: RunWatcher, *, sheet: int, form: SampleForm) -> Iterator[dict[str, Any]]:
    form.progress.sheet = sheet
    form = suited(form)  # what was offered for its adapter may not have arrived in the form yet
    is_sent = not form.new_seed  # one that was drawn here is sent once: the user may type another one meanwhile
    for html, files, seed in generate(sampler, watch, form):
        drawn = {"result": html, "files": files}
        yield drawn if is_sent else drawn | {"seed": seed}
        is_sent = True


def _restored(form: SampleForm) -> dict[str, Any]:
    others = [dict(enumerate_named(values)) for values in zip(*form.others, strict=True)]
    return {**{name: getattr(form, name) for name in RESTORED}, "others": others[0], "strengths": others[1]}


def enumerate_named(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Number values as `sample_form` names the components of the other adapters."""
    return ((str(number), value) for number, value in enumerate(values))


RESTORED = (*FILLED, "adapter", "strength", "seed", "new_seed", "size", "negative", "base", "vae")


# Choices --------------------------------------------------------------------------------------------------------


def offer(watch: RunWatcher, *, project: str, form: SampleForm, chosen: str | None = None) -> dict[str, Any]:
    """Return values of `Tab.offered`: the adapters, and a prompt, steps, guidance and clip skip that suit the choice.

    The adapter is the `chosen` one, else that of the form, else the newest of the project.
    """
    choices = adapter_choices.choices(watch)
    keys = [key for _, key in choices]
    is_first = tuple(form.defaults) == DEFAULTS  # nothing was offered yet, so that nobody chose to have no adapter
    wanted = [chosen, form.adapter]
    if is_first and not form.adapter:
        wanted = [chosen]
    adapter = next((key for key in wanted if key in keys), None)
    if adapter is None:
        adapter = _newest(watch, project, keys)
    other = {} if adapter == form.adapter else {"value": adapter}
    suits = suited(replace(form, adapter=adapter))
    others = {}
    for number, (key, _strength) in enumerate_named(form.others):
        gone = {} if key in keys else {"value": ""}
        others[number] = gr.update(choices=[*choices[:-1], NO_ADAPTER], **gone)
    return {
        "adapter": gr.update(choices=choices, **other),
        **{name: getattr(suits, name) for name in FILLED if getattr(suits, name) != getattr(form, name)},
        **_notes(watch, small=usual_settings(adapter, form.base).model.base == MICRO),
        "recent": sample_images.recent(),
        "previews": _previews(watch, adapter),
        "others": others,
    }


def suited(form: SampleForm) -> SampleForm:
    """Return the form with what suits its adapter and base, but for what the user changed.

    If they were offered already, all of it stays: who then empties the prompt wants none.
    """
    config = usual_settings(form.adapter, form.base)
    preview = config.preview
    prompt = next((prompt_lines.parse_prompt_line(line).prompt for line in preview.prompts), config.trigger)
    suitable: list[str | float] = [prompt, preview.steps, preview.guidance, config.model.clip_skip]
    if list(form.defaults) == suitable:
        return form
    typed = [getattr(form, name) for name in SUITED]
    filled: dict[str, Any] = dict(zip(SUITED, map(_suited, typed, form.defaults, suitable), strict=True))
    return replace(form, defaults=suitable, **filled)


def _previews(watch: RunWatcher, adapter: str) -> str:
    """Render the newest previews of the run of an adapter; "" without any."""
    run = adapter_choices.run_of(adapter)
    if run and (images := run_html.newest(watch.view(run))):
        return render("try_previews.html", images=images)
    return ""


def _newest(watch: RunWatcher, project: str, keys: Sequence[str]) -> str:
    """Return the newest adapter of a project, else of any."""
    own = {run.id for run in watch.runs_of(project)}
    return next((key for key in keys if key.partition("@")[0] in own), keys[0])


def _suited(value: object, before: object, suitable: object) -> object:
    """Return what a field is to hold: what suits the adapter, unless the user changed it."""
    typed = value.strip() if isinstance(value, str) else value
    if not suitable or (typed and typed != before):
        return value
    return suitable


def _notes(watch: RunWatcher, *, small: bool) -> dict[str, Any]:
    """Return the notes above the image, and the button that pauses or continues an active training."""
    notes, active = [], watch.active()
    label = PAUSE_TRAINING
    shares = active is not None and (active.paused or not cards.has_spare())
    if small:
        notes.append(MINIATURE)
    if active and active.paused:
        notes.append(_("Training is paused."))
        label = GO_ON
    elif shares:
        notes.append(_("A training run is active: generating images is slower, and so is the training."))
    return {"note": render("paragraphs.html", texts=notes), "hold": gr.Button(label, visible=shares)}


def hold_training(watch: RunWatcher, sampler: SamplerClient, *, form: SampleForm, label: str) -> dict[str, Any]:
    """Pause the run that trains, or let it continue: what the button says, also if another page was faster."""
    active = watch.active()
    if active and active.status == "running":
        run_actions.pause(active.run.id, sampler, go_on=label == GO_ON)
    return _notes(watch, small=usual_settings(form.adapter, form.base).model.base == MICRO)


def usual_settings(adapter: str, base: str = "") -> configs.TrainConfig:
    """Return the settings to generate with: those of the adapter's run, unless another base model is named.

    Otherwise what suits that base, or the built-in one; the clip skip remains that of the adapter.
    """
    base, trained = paths.unquoted(base), None
    if run := adapter_choices.run_of(adapter):
        with suppress(UserError, OSError):  # its settings are damaged; generating says so
            trained = run.config()
    if trained and not base:
        return trained
    config = settings_form.standard("character", base)
    clip_skip = trained.model.clip_skip if trained else adapter_choices.clip_skip(adapter)
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
    base = _named(settings["base"], usual_settings(adapter).model.base)
    size = ""
    if settings["width"] and settings["height"]:
        size = f"{settings['width']} x {settings['height']}"
    form = SampleForm(
        adapter=adapter,
        strength=strength,
        size=size,
        base=base,
        others=tuple(others),
        **{name: settings[name] for name in ("prompt", "seed", "steps", "guidance", "clip_skip", "negative")},
    )
    return replace(form, defaults=suited(form).defaults)  # else a prompt that was offered before would be filled again


def _named(base: str, usual: str) -> str:
    """Return what stands in the form for the base model that an image names; "" for that of its adapter.

    Raises:
        UserError: it was a file or folder of that name, and none is listed here.
    """
    if base in (MICRO, Path(usual).name, usual):  # images of version 0.1.0 say micro for any file
        return ""
    listed = [key for _label, key in base_model_choices.choices()]
    here = next((key for key in listed if base in (key, Path(key).name)), None)
    if here is None and not detect.is_hub_name(base):
        raise UserError(
            "The base model {name!r} is not here.", "Put it into the models folder, then try again.", name=base
        )
    return here or base


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
    progress = form.progress
    if len(form.files) == len(cells):
        sheet.files = list(form.files)
    paths.sample_images().mkdir(parents=True, exist_ok=True)
    failure: UserError | None = None
    ended = ""  # why further images do not come
    for number, request in enumerate(requests):
        progress.request = request
        try:
            for note in _progress(sampler, request):
                yield sheet.html(busy=number, note=note), form.files, seed
                if progress.is_canceled:  # while it waited for the image of another page
                    break
        except UserError as error:
            failure, ended = error, error.message
        if progress.is_canceled:
            failure, ended = None, _("Canceled")
        if ended:
            sheet.facts += f". {ended}"
            # Images of an earlier request do not stand beside those of this one.
            sheet.files[number:] = [""] * (len(cells) - number)
            break
        sheet.files[number] = Path(request.out).name
        notes = sampler.notes.get(request.out, ())
        sheet.facts += "".join(f". {note}" for note in notes if note not in sheet.facts)
    sample_images.prune()
    yield sheet.html(), sheet.files, seed
    if failure:
        raise failure


def cancel(sampler: SamplerClient, *, progress: Progress, sheet: int) -> None:
    """Cancel the images of this sheet, which may be there meanwhile, or not be asked for yet by what comes first."""
    progress.canceled.add(sheet)
    if progress.request and progress.is_canceled:
        sampler.cancel(progress.request)


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
    model = configs.ModelConfig()
    if name := paths.unquoted(name):
        model = configs.check(configs.ModelConfig, {"base": name})
    elif run := adapter_choices.run_of(adapter):
        model = run.config().model
    if vae := paths.unquoted(vae):
        model = configs.check(configs.ModelConfig, {**model.model_dump(), "vae": vae})
    return model
