"""Tab 3: pictures from a prompt, with any adapter at any strength, beside those without it."""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer.config import PictureConfig
from trainer.errors import UserError
from ui import adapters, media
from ui.handling import QUIET, handled
from ui.painter import Painter
from ui.watch import Watch

KEPT = 200  # pictures
MORE = 3  # adapters beside the first
VIEWS = [("One picture", "one"), ("Before and after", "before"), ("Compare strengths", "compare")]
SIDE = configs.micro_side()
MINIATURE = f"Micro is a miniature for trying things out: portraits of {SIDE} x {SIDE} pixels, shown enlarged."
EMPTY = "<div class='empty'>Choose an adapter, write what to show, and make a picture.</div>"
_SECRET = secrets.token_bytes(16)  # makes the pictures' names unguessable


@dataclass(frozen=True)
class Tab:
    """What `offer` gives values for, and what it wants to know."""

    asked: list[Any]
    offered: list[Any]


def build(painter: Painter, watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    usual = gr.State("")  # the prompt that was offered, so that a prompt of the person's own is kept
    last = gr.State([])  # the pictures on show: (strength, file)
    with gr.Row(elem_id="try-columns"):
        with gr.Column(scale=2, min_width=300):
            adapter = gr.Dropdown([adapters.NONE], value="", label="Adapter", elem_id="adapter", interactive=True)
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, elem_id="prompt", interactive=True)
            strength = gr.Slider(
                0, 1.5, value=1.0, step=0.05, label="Strength", info="Of the adapter; 0 = the base model alone.",
                elem_id="strength", interactive=True,
            )  # fmt: skip
            view = gr.Radio(VIEWS, value="one", label="Show", elem_id="try-view", interactive=True)
            others = _others()
            make = gr.Button("Make picture", variant="primary", size="lg", elem_id="make")
            with gr.Accordion("Advanced", open=False, elem_id="try-advanced"):
                seed = gr.Number(
                    1, label="Seed", info="The same seed gives the same picture.", elem_id="seed", interactive=True
                )
                steps = gr.Number(
                    20, label="Steps", info="Denoising steps, 1 to 200.", elem_id="try-steps", interactive=True
                )
                guidance = gr.Number(
                    3.0, label="Guidance", info="How closely the picture follows the prompt, 1 to 30.",
                    elem_id="guidance", interactive=True,
                )  # fmt: skip
                negative = gr.Textbox(
                    label="Negative prompt", info="What not to show.", elem_id="negative", interactive=True
                )
        with gr.Column(scale=4, min_width=320):
            note = gr.HTML(elem_id="try-note", elem_classes="quiet")
            result = gr.HTML(EMPTY, elem_id="result")

    def painted(*given: Any) -> Iterator[tuple[str, list[Any]]]:  # noqa: ANN401 - values of the tab
        yield from paint(painter, *given)

    gr.on(
        [make.click, strength.change, view.input],
        handled(painted),
        [adapter, prompt, strength, view, seed, steps, guidance, negative, last, *others], [result, last],
        trigger_mode="always_last", concurrency_id="paint", concurrency_limit=1, **QUIET,
    )  # fmt: skip
    asked = [adapter, prompt, usual, *others[1::2]]
    offered = [adapter, prompt, usual, steps, guidance, note, *others[1::2]]
    adapter.input(handled(lambda *given: offer(watch, *given)), asked, offered, **QUIET)
    return Tab(asked, offered)


# Adapters -------------------------------------------------------------------------------------------------------


def _others() -> list[Any]:
    """The base model, and up to `MORE` adapters beside the first, each with its strength."""
    with gr.Accordion("Several adapters, other base model", open=False, elem_id="try-others"):
        base = gr.Textbox(
            label="Base model", elem_id="try-base", interactive=True,
            info="Empty = what the first adapter was trained on here. For files from elsewhere: 'micro', a folder, a "
            ".safetensors file, or a name on the hub. Files are added in the Download tab.",
        )  # fmt: skip
        found: list[Any] = [base]
        for number in range(2, 2 + MORE):
            with gr.Row(elem_classes="bottom"):
                found.append(
                    gr.Dropdown([("None", "")], value="", label=f"Adapter {number}", elem_id=f"adapter-{number}",
                                interactive=True, scale=2)
                )  # fmt: skip
                found.append(
                    gr.Number(1.0, label=f"Strength {number}", elem_id=f"strength-{number}", interactive=True,
                              min_width=90)
                )  # fmt: skip
    return found


def offer(watch: Watch, adapter: str | None, prompt: str | None, usual: str, *more: str | None) -> list[Any]:
    """What can be tried, and a prompt, steps and guidance that suit the choice."""
    listed = adapters.choices(watch)
    keys = [key for _, key in listed]
    chosen = adapter if adapter in keys and adapter else keys[0]
    base, offered, preview = configs.MICRO, "", form_defaults()
    if run := adapters.run_of(chosen):
        config = run.config()
        base, preview = config.model.base, config.preview
        offered = config.preview.prompts[0] if config.preview.prompts else config.trigger
    text = offered if not (prompt or "").strip() or prompt == usual else prompt
    notes = [MINIATURE] if base == configs.MICRO else []
    if watch.active():
        notes.append("A training is under way: pictures take longer until it is done.")
    return [
        # Nothing to offer is no reason to touch what may have been typed meanwhile.
        gr.Dropdown(listed, value=chosen), text or gr.skip(), offered, preview.steps, preview.guidance,
        "".join(f"<p>{note}</p>" for note in notes),
        *(gr.Dropdown([*listed[:-1], ("None", "")], value=one if one in keys else "") for one in more),
    ]  # fmt: skip


def form_defaults() -> configs.PreviewConfig:
    """How the built-in base is painted with if no run says otherwise."""
    return configs.PreviewConfig.model_validate(configs.preset("character", configs.MICRO)["preview"])


# Pictures -------------------------------------------------------------------------------------------------------


def paint(painter: Painter, *given: Any) -> Iterator[tuple[str, list[Any]]]:  # noqa: ANN401 - values of the tab
    """Paint what the tab asks for; yields the result as it grows, and at the end with all pictures."""
    adapter, prompt, strength, view, seed, steps, guidance, negative, last, *others = given
    wanted = strengths(view, strength)
    model = base_of(adapter, *others[:1])
    if not (prompt or "").strip():
        raise UserError("There is no prompt yet.", "Write what the picture should show.")
    first = adapters.find(adapter) if adapter else None
    beside = [(adapters.find(key), float(one or 0)) for key, one in zip(others[1::2], others[2::2], strict=True) if key]
    requests = [
        request(
            base=model.base, adapters=[*([(first, one)] if first else []), *beside], prompt=prompt.strip(),
            negative=(negative or "").strip(), seed=seed, steps=steps, guidance=guidance, revision=model.revision,
            objective=model.objective,
        )
        for one in wanted
    ]  # fmt: skip
    old = [file for _, file in last] if len(last) == len(wanted) else [""] * len(wanted)
    shown = list(zip(wanted, old, strict=True))
    small = model.base == configs.MICRO
    facts = f"Seed {requests[0].seed}, {requests[0].steps} steps, guidance {requests[0].guidance:g}"
    media.pictures().mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(requests):
        if not Path(picture.out).is_file():
            for done, of in painter.paint(picture):
                note = f"Painting, step {done} of {of}" if done else "Getting ready (the first picture takes longer)"
                yield draw(shown, facts, small=small, busy=number, note=note), last
        shown[number] = (wanted[number], Path(picture.out).name)
    prune()
    yield draw(shown, facts, small=small), shown


def strengths(view: str, strength: float) -> list[float]:
    """The strengths that a view shows side by side."""
    match view:
        case "before":
            return [0.0, float(strength)]
        case "compare":
            return [0.0, 0.5, 1.0, 1.5]
        case _:
            return [float(strength)]


def base_of(adapter: str | None, wanted: str = "") -> configs.ModelConfig:
    """The base model to draw with: the one that is named, else what the adapter was trained on.

    Raises:
        UserError: the name is no name.
    """
    if wanted and wanted.strip():
        return configs.check(configs.ModelConfig, {"base": wanted.strip()})
    run = adapters.run_of(adapter or "")
    return run.config().model if run else configs.ModelConfig()


def request(*, base: str, adapters: Sequence[tuple[Path, float]], **settings: Any) -> PictureConfig:  # noqa: ANN401
    """A checked request; the picture's name follows from all that it depends on, so the same one is not painted twice.

    Raises:
        UserError: a value out of bounds, each named.
    """
    for key in ("seed", "steps"):
        if isinstance(settings[key], float) and settings[key].is_integer():
            settings[key] = int(settings[key])
    used = [(file, strength) for file, strength in adapters if strength]
    named = tuple((str(file), strength) for file, strength in used)
    picture = configs.check(PictureConfig, {"base": base, "adapters": named, "out": "x", **settings})
    written = [file.stat().st_mtime_ns for file, _ in used]
    name = hashlib.sha256(_SECRET + f"{written}{picture.model_dump_json()}".encode()).hexdigest()[:32]
    return picture.model_copy(update={"out": str(media.pictures() / f"{name}.png")})


def prune() -> None:
    """Keep the newest pictures only."""
    made = sorted(media.pictures().glob("*.png"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in made[KEPT:]:
        old.unlink(missing_ok=True)


def draw(
    shown: Sequence[tuple[float, str]], facts: str, *, small: bool, busy: int | None = None, note: str = ""
) -> str:
    """The pictures side by side; the one that is being painted has its progress on it."""
    look = "pixels" if small else ""
    figures = []
    for number, (strength, file) in enumerate(shown):
        waiting = busy is not None and number >= busy
        caption = "without the adapter" if strength == 0 else f"strength {strength:g}"
        link = f"/media/picture/{file}"
        image = f"<img class='{look}' src='{link}' alt='Picture, {caption}'>" if file else "<div class='blank'></div>"
        cover = f"<span class='cover' role='status'>{escape(note)}</span>" if busy == number else ""
        save = f" <a href='{link}' download='{caption.replace(' ', '-')}.png'>save</a>" if file and not waiting else ""
        state = " waiting" if waiting else ""
        figures.append(
            f"<figure class='picture{state}' data-strength='{strength:g}'>{image}{cover}"
            f"<figcaption>{caption}{save}</figcaption></figure>"
        )
    done = "" if busy is not None else " done"
    return f"<div class='pictures count-{len(shown)}{done}'>{''.join(figures)}</div><p class='quiet'>{facts}</p>"
