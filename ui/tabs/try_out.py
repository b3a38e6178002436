"""Tab 3: pictures from a prompt, with any adapter at any strength, beside those without it."""

import dataclasses
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer import runs
from trainer.base_models import MICRO
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.i18n import say
from trainer.runs import archive
from ui.server import media
from ui.state import adapter_choices
from ui.state.run_watcher import Watch
from ui.state.sampler_client import Painter
from ui.tabs import comparison, sample_images
from ui.tabs.comparison import Cell
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import read

USUAL = ("", 20, 3.0)  # prompt, steps and guidance before any adapter is chosen
MORE = 3  # adapters beside the first
PAUSE = 0.3  # seconds between two words on how far a picture is
NOBODY = (say("None"), "")
SIDE = configs.micro_resolution()
MINIATURE = say(
    "Micro is a miniature for trying things out: portraits of {side} x {side} pixels, shown enlarged.", side=SIDE
)
EMPTY = f"<div class='empty'>{say('Choose an adapter, write what to show, and make a picture.')}</div>"
SLIDE = """element.addEventListener("input", (event) => {
  const frame = event.target.closest(".uncover");
  if (frame) frame.style.setProperty("--cut", event.target.value + "%");
});"""


@dataclass(frozen=True)
class Tab:
    """Inputs and outputs of `offer`."""

    asked: list[Any]
    offered: list[Any]


@dataclass(frozen=True)
class Asked:
    """The values of the tab; `last` are the pictures on show, `others` further adapters with their strengths."""

    adapter: str | None
    prompt: str | None
    strength: float
    view: str
    seed: float
    fresh: bool
    steps: float
    guidance: float
    size: str
    negative: str
    last: list[str]
    base: str
    others: tuple[Any, ...] = ()

    @classmethod
    def of(cls, *given: Any) -> "Asked":  # noqa: ANN401 - values of the tab
        """From the components' values, in the order of the fields."""
        names = [one.name for one in dataclasses.fields(cls)]
        return cls(**dict(zip(names[:-1], given, strict=False)), others=given[len(names) - 1 :])


def build(painter: Painter, watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    usual = gr.State(USUAL)  # what was offered last, so that what a person changed since is kept
    last = gr.State([])  # files of the pictures on show
    with gr.Row(elem_id="try-columns"):
        with gr.Column(scale=2, min_width=300):
            adapter = gr.Dropdown(
                [adapter_choices.NONE], value="", label=say("Adapter"), elem_id="adapter", interactive=True
            )
            prompt = gr.Textbox(label=say("Prompt"), lines=2, max_lines=6, elem_id="prompt", interactive=True)
            strength = gr.Slider(
                0, 1.5, value=1.0, step=0.05, label=say("Strength"), elem_id="strength", interactive=True,
                info=say("Of the adapter; 0 = the base model alone."),
            )  # fmt: skip
            view = gr.Radio(comparison.VIEWS, value="one", label=say("Show"), elem_id="try-view", interactive=True)
            others = _others()
            with gr.Row():
                make = gr.Button(say("Make picture"), variant="primary", size="lg", elem_id="make", scale=3)
                cancel = gr.Button(say("Cancel"), size="lg", elem_id="cancel", scale=1, min_width=90)
            seed, fresh, steps, guidance, size, negative, restore = _advanced()
        with gr.Column(scale=4, min_width=320):
            note = gr.HTML(elem_id="try-note", elem_classes="quiet")
            hold = gr.Button(say("Pause the training meanwhile"), size="sm", visible=False, elem_id="hold-training")
            result = gr.HTML(EMPTY, elem_id="result", js_on_load=SLIDE)
            made = gr.HTML(elem_id="made", js_on_load=read("enlarge.js"))

    def painted(*given: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - values of the tab
        asked = Asked.of(*given)
        for shown, files, used in paint(painter, watch, asked):
            # A seed that was not drawn here is left alone: another may have been typed meanwhile.
            yield shown, files, used if asked.fresh else gr.skip()

    values = [adapter, prompt, strength, view, seed, fresh, steps, guidance, size, negative, last, *others]
    painting = gr.on(
        [make.click, strength.change, view.input], handled(painted), values, [result, last, seed],
        trigger_mode="always_last", concurrency_id="paint", concurrency_limit=1, **QUIET,
    )  # fmt: skip
    painting.then(handled(sample_images.history), None, made, **QUIET)
    cancel.click(painter.give_up, None, None, queue=False, **QUIET)
    asked = [adapter, prompt, steps, guidance, usual, *others[1::2]]
    offered = [adapter, prompt, usual, steps, guidance, note, hold, made, *others[1::2]]
    adapter.input(handled(lambda *given: offer(watch, *given)), asked, offered, **QUIET)
    hold.click(handled(lambda: hold_training(watch)), None, [note, hold], **QUIET)
    restore.upload(
        handled(lambda file: restored(file, watch)), restore,
        [adapter, prompt, strength, seed, fresh, steps, guidance, size, negative, others[0], *others[1:]], **QUIET,
    )  # fmt: skip
    return Tab(asked, offered)


# Components -----------------------------------------------------------------------------------------------------


def _advanced() -> tuple[Any, ...]:
    with gr.Accordion(say("Advanced"), open=False, elem_id="try-advanced"):
        seed = gr.Number(
            1, label=say("Seed"), info=say("The same seed gives the same picture."), elem_id="seed", interactive=True
        )
        fresh = gr.Checkbox(False, label=say("A new seed for each picture"), elem_id="fresh", interactive=True)
        steps = gr.Number(
            USUAL[1], label=say("Steps"), info=say("Denoising steps, 1 to 200."), elem_id="try-steps", interactive=True
        )
        guidance = gr.Number(
            USUAL[2], label=say("Guidance"), info=say("How closely the picture follows the prompt, 1 to 30."),
            elem_id="guidance", interactive=True,
        )  # fmt: skip
        size = gr.Textbox(
            label=say("Size"), info=say("Such as 512 x 768; empty = what the base was trained on."), max_lines=1,
            elem_id="try-size", interactive=True,
        )  # fmt: skip
        negative = gr.Textbox(
            label=say("Negative prompt"), info=say("What not to show."), elem_id="negative", interactive=True
        )
        restore = gr.UploadButton(
            say("Take the settings of a picture"), file_types=[".png"], size="sm", elem_id="restore-settings"
        )
    return seed, fresh, steps, guidance, size, negative, restore


def _others() -> list[Any]:
    """The base model, and up to `MORE` adapters beside the first, each with its strength."""
    with gr.Accordion(say("Several adapters, other base model"), open=False, elem_id="try-others"):
        base = gr.Textbox(
            label=say("Base model"), elem_id="try-base", interactive=True,
            info=say(
                "Empty = what the first adapter was trained on here. For files from elsewhere: 'micro', a folder, a "
                ".safetensors file, or a name on the hub. Files are added in the Download tab."
            ),
        )  # fmt: skip
        found: list[Any] = [base]
        for number in range(2, 2 + MORE):
            with gr.Row(elem_classes="bottom"):
                found.append(
                    gr.Dropdown([NOBODY], value="", label=say("Adapter {number}", number=number),
                                elem_id=f"adapter-{number}", interactive=True, scale=2)
                )  # fmt: skip
                found.append(
                    gr.Number(1.0, label=say("Strength {number}", number=number), elem_id=f"strength-{number}",
                              interactive=True, min_width=90)
                )  # fmt: skip
    return found


# What can be tried ----------------------------------------------------------------------------------------------


def offer(
    watch: Watch, adapter: str | None, prompt: str | None, steps: float | None, guidance: float | None,
    usual: tuple[str, float, float], *more: str | None,
) -> list[Any]:  # fmt: skip
    """Values of `Tab.offered`: what can be tried, and a prompt, steps and guidance that suit the choice.

    Nothing is sent to a field that its owner changed or that would not change: it may have been typed in meanwhile.
    """
    listed = adapter_choices.choices(watch)
    keys = [key for _, key in listed]
    chosen = adapter if adapter in keys and adapter else keys[0]
    base, text, preview = MICRO, "", usual_settings(chosen)
    if run := adapter_choices.run_of(chosen):
        config = run.config()
        base = config.model.base
        text = preview.prompts[0] if preview.prompts else config.trigger
    suitable = (text, preview.steps, preview.guidance)
    values = ((prompt or "").strip(), steps, guidance)
    sent = [
        new if new and new != value and (value == before or not value) else gr.skip()
        for value, before, new in zip(values, usual, suitable, strict=True)
    ]
    return [
        gr.Dropdown(listed, value=chosen), sent[0], suitable, *sent[1:],
        *_notes(watch, small=base == MICRO), sample_images.history(),
        *(gr.Dropdown([*listed[:-1], NOBODY], value=one if one in keys else "") for one in more),
    ]  # fmt: skip


def _notes(watch: Watch, *, small: bool) -> list[Any]:
    """Return what to know before an image is generated, and whether a training can be paused for it."""
    notes, active = [MINIATURE] if small else [], watch.active()
    if active and active.paused:
        notes.append(say("The training is paused."))
    elif active:
        notes.append(say("A training is under way: pictures take longer, and so does it."))
    words = say("Let the training go on") if active and active.paused else say("Pause the training meanwhile")
    return ["".join(f"<p>{note}</p>" for note in notes), gr.Button(words, visible=bool(active))]


def hold_training(watch: Watch) -> list[Any]:
    """Pause the run that trains, or let it go on."""
    active = watch.active()
    if active and active.status == "running":
        runs.pause(active.run, go_on=active.paused)
    return _notes(watch, small=True)


def usual_settings(adapter: str) -> configs.PreviewConfig:
    """Return the sampling settings for an adapter: those of its run's previews, or what suits the built-in base."""
    if run := adapter_choices.run_of(adapter):
        return run.config().preview
    return configs.PreviewConfig.model_validate(configs.preset("character", MICRO)["preview"])


def restored(path: str | None, watch: Watch) -> list[Any]:
    """The tab as it was when a picture was made, from what stands in the picture.

    Raises:
        UserError: it was not made here, or with an adapter that is not here any more.
    """
    try:
        told = sample_images.settings_of(Path(path)) if path else None
    finally:
        if path:
            Path(path).unlink(missing_ok=True)
    if told is None:
        raise UserError("This picture does not tell what made it.", "Use a PNG file that was made and saved here.")
    keys = {
        archive.display_name(adapter_choices.find(key)): key
        for _, key in reversed(adapter_choices.choices(watch))
        if key
    }
    gone = [name for name, _ in told["adapters"] if name not in keys]
    if gone:
        raise UserError(
            "The adapter {name} is no longer here.", "Add it in the Download tab, then try again.", name=gone[0]
        )
    used = [(keys[name], strength) for name, strength in told["adapters"]]
    (first, strength), beside = (used[0], used[1 : 1 + MORE]) if used else (("", 0.0), [])
    beside += [("", 1.0)] * (MORE - len(beside))
    size = f"{told['width']} x {told['height']}" if told["width"] and told["height"] else ""
    return [
        first, told["prompt"], strength, told["seed"], False, told["steps"], told["guidance"], size, told["negative"],
        "" if used else told["base"], *(value for pair in beside for value in pair),
    ]  # fmt: skip


# Pictures -------------------------------------------------------------------------------------------------------


def paint(painter: Painter, watch: Watch, asked: Asked) -> Iterator[tuple[Any, ...]]:
    """Paint what the tab asks for; yields HTML as it grows, the files on show, and the seed that was used.

    Raises:
        UserError: there is no prompt, or a value is out of bounds.
    """
    if not (asked.prompt or "").strip():
        raise UserError("There is no prompt yet.", "Write what the picture should show.")
    seed = random.SystemRandom().randrange(2**31) if asked.fresh else asked.seed
    cells = comparison.cells(asked.view, asked.adapter or "", float(asked.strength), watch)
    model = base_of(asked.adapter, asked.base)
    requests = [request_of(asked, cell, model, seed) for cell in cells]
    old = asked.last if len(asked.last) == len(cells) else [""] * len(cells)
    shown = list(zip(cells, old, strict=True))
    facts = say(
        "Seed {seed}, {steps} steps, guidance {guidance:g}", seed=requests[0].seed, steps=requests[0].steps,
        guidance=requests[0].guidance,
    )  # fmt: skip
    small = model.base == MICRO
    media.pictures().mkdir(parents=True, exist_ok=True)
    given_up = painter.given_up
    for number, picture in enumerate(requests):
        try:
            for done, of in _seldom(painter.paint(picture)) if not Path(picture.out).is_file() else ():
                note = say("Getting ready (the first picture takes longer)")
                if done:
                    note = say("Painting, step {step} of {steps}", step=done, steps=of)
                told = f"{facts}. {say('Picture {number} of {all}.', number=number + 1, all=len(cells))}"
                yield draw(asked.view, shown, told, small=small, busy=number, note=note), asked.last, seed
        except UserError:
            if painter.given_up == given_up:
                raise
        if painter.given_up != given_up:
            facts += ". " + say("Given up")
            break
        shown[number] = (cells[number], Path(picture.out).name)
    sample_images.prune()
    yield draw(asked.view, shown, facts, small=small), [file for _, file in shown], seed


def _seldom(progress: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Not every step: a browser that has to draw the page anew for each falls behind, and a click on Cancel with it."""
    told = 0.0
    for done, of in progress:
        if not done:
            yield done, of
        elif time.monotonic() - told >= PAUSE:
            told = time.monotonic()
            yield done, of


def request_of(asked: Asked, cell: Cell, model: configs.ModelConfig, seed: float) -> PictureConfig:
    """The checked request for one picture of a view."""
    beside = [
        (adapter_choices.find(key), float(one or 0))
        for key, one in zip(asked.others[::2], asked.others[1::2], strict=True)
        if key
    ]
    width, height = sample_images.size(asked.size or "")
    return sample_images.request(
        base=model.base, adapters=[*([(adapter_choices.find(cell.key), cell.strength)] if cell.key else []), *beside],
        prompt=(asked.prompt or "").strip(), negative=(asked.negative or "").strip(), seed=seed, steps=asked.steps,
        guidance=asked.guidance, width=width, height=height, revision=model.revision, objective=model.objective,
    )  # fmt: skip


def base_of(adapter: str | None, wanted: str = "") -> configs.ModelConfig:
    """The base model to draw with: the one that is named, else what the adapter was trained on.

    Raises:
        UserError: the name is no name.
    """
    if wanted and wanted.strip():
        return configs.check(configs.ModelConfig, {"base": wanted.strip()})
    run = adapter_choices.run_of(adapter or "")
    return run.config().model if run else configs.ModelConfig()


def draw(
    view: str, shown: Sequence[tuple[Cell, str]], facts: str, *, small: bool, busy: int | None = None, note: str = "",
) -> str:  # fmt: skip
    """The pictures side by side; the one that is being painted has its progress on it."""
    done = "" if busy is not None else " done"
    told = f"<p class='quiet'>{escape(facts)}</p>"
    if view == "slide" and busy is None:
        slider = sample_images.slider(shown[0][1], shown[1][1], small=small)
        return f"<div class='pictures count-1 done'>{slider}</div>{told}"
    figures = [
        sample_images.figure(
            cell.caption, file, strength=cell.strength, small=small, note=note if number == busy else "",
            waiting=busy is not None and number >= busy,
        )
        for number, (cell, file) in enumerate(shown)
    ]  # fmt: skip
    return f"<div class='pictures count-{comparison.columns(view, len(shown))}{done}'>{''.join(figures)}</div>{told}"
