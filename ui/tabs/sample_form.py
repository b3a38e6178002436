"""Form of the Try out tab: its components, and the values that its handlers get, both by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from trainer.config import PictureConfig
from trainer.i18n import _
from ui.state import adapter_choices
from ui.tabs import comparison
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, Several, listen

DEFAULTS = ("", 20, 3.0, 1)  # prompt, steps, guidance and clip skip before an adapter is chosen
OTHERS = 3  # adapters beside the first
NO_ADAPTER = (_("None"), "")


@dataclass
class Progress:
    """State of what a page generates: the request whose turn it is, and the number that the page gave its sheet."""

    request: PictureConfig | None = None
    sheet: int = 0
    canceled: set[int] = dataclasses.field(default_factory=set)  # sheets, also those that are not asked for yet

    @property
    def is_canceled(self) -> bool:
        """The sheet whose turn it is was canceled."""
        return self.sheet in self.canceled


@dataclass(frozen=True)
class SampleForm:
    """Values of the form. `files` are the images on the page, `others` the further adapters with their strengths.

    `defaults` are the prompt, steps, guidance and clip skip that were offered last; where the form holds something
    else, the user changed it. `progress` is shared by all requests of a page, so that *Cancel* reaches those that are
    being answered.
    """

    adapter: str
    prompt: str
    strength: float = 1.0
    view: str = "one"
    seed: float = 1
    new_seed: bool = False
    steps: float = DEFAULTS[1]
    guidance: float = DEFAULTS[2]
    clip_skip: float = DEFAULTS[3]
    size: str = ""
    negative: str = ""
    files: Sequence[str] = ()
    base: str = ""
    vae: str = ""
    table_rows: str = "checkpoints"
    table_chosen: str = ""
    table_strengths: str = comparison.GRID_STRENGTHS
    others: tuple[tuple[str, float], ...] = ()
    defaults: Sequence[str | float] = DEFAULTS
    progress: Progress = dataclasses.field(default_factory=Progress, compare=False)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "SampleForm":
        """Read the values of `Components.form`."""
        named = {name: values[name] for name in SINGLE}
        for name in ("adapter", "prompt", "size", "negative", "base", "vae", "table_chosen", "table_strengths"):
            named[name] = named[name] or ""
        pairs = zip(values["others"].values(), values["strengths"].values(), strict=True)
        return cls(**named, others=tuple((key or "", strength or 0.0) for key, strength in pairs))


SINGLE = tuple(member.name for member in fields(SampleForm) if member.name != "others")


@dataclass(frozen=True)
class Components:
    """Components of the form, named as their values in `SampleForm`."""

    adapter: gr.Dropdown
    prompt: gr.Textbox
    strength: gr.Slider
    view: gr.Radio
    seed: gr.Number
    new_seed: gr.Checkbox
    steps: gr.Number
    guidance: gr.Number
    clip_skip: gr.Number
    size: gr.Textbox
    negative: gr.Textbox
    files: gr.State
    progress: gr.State
    base: gr.Textbox
    vae: gr.Textbox
    table_rows: gr.Radio
    table_chosen: gr.Textbox
    table_strengths: gr.Textbox
    others: list[tuple[gr.Dropdown, gr.Number]]
    defaults: gr.JSON
    generate: gr.Button
    cancel: gr.Button
    restore: gr.UploadButton

    def named(self, *names: str) -> dict[str, Any]:
        """Return the components with these names, and the other adapters and their strengths as groups."""
        adapters, strengths = zip(*self.others, strict=True)
        groups = {"others": _numbered(adapters), "strengths": _numbered(strengths)}
        return {name: groups.get(name) or getattr(self, name) for name in names}

    @property
    def form(self) -> Several:
        """The components that a `SampleForm` is read from."""
        return Several(self.named(*SINGLE, "others", "strengths"), SampleForm.read)


def _numbered(components: Sequence[Any]) -> Several:
    return Several({str(number): component for number, component in enumerate(components)})


def build() -> Components:
    """Draw the form."""
    adapter = field(gr.Dropdown, "adapter", _("Adapter"), choices=[adapter_choices.NONE], value="")
    prompt = field(gr.Textbox, "prompt", _("Prompt"), max_lines=6)
    with gr.Row():
        generate = gr.Button(_("Generate image"), variant="primary", size="lg", elem_id="make", scale=3)
        cancel = gr.Button(_("Cancel"), size="lg", elem_id="cancel", scale=1, min_width=90)
    strength = field(
        gr.Slider,
        "strength",
        _("Strength"),
        _("Strength of the adapter; 0 = base model only."),
        minimum=0,
        maximum=1.5,
        value=1.0,
        step=0.05,
    )
    view = field(gr.Radio, "try-view", _("Show"), choices=comparison.VIEWS, value="one")
    return Components(
        adapter=adapter,
        prompt=prompt,
        strength=strength,
        view=view,
        **_table(view),
        **_advanced(),
        **_others(),
        files=gr.State([]),
        progress=gr.State(Progress()),
        defaults=gr.JSON(list(DEFAULTS), visible=False, elem_id="try-defaults"),
        generate=generate,
        cancel=cancel,
    )


def _table(view: gr.Radio) -> dict[str, Any]:
    """Draw the fields for the axes of the table, which are there while it is chosen."""
    about = _("Steps or seeds as 100 200 300; prompts one per line. Empty = five checkpoints, or seeds 1 to 3.")
    strengths = {"value": comparison.GRID_STRENGTHS, "max_lines": 1}
    with gr.Column(visible=False, elem_id="table-axes") as axes:
        table = {
            "table_rows": field(gr.Radio, "table-rows", _("Rows"), choices=comparison.ROWS, value="checkpoints"),
            "table_chosen": field(gr.Textbox, "table-chosen", _("Which of them"), about, lines=2, max_lines=8),
            "table_strengths": field(gr.Textbox, "table-strengths", _("Strengths of the columns"), **strengths),
        }

    def show(view: str) -> dict[str, gr.Column]:
        return {"axes": gr.Column(visible=view == "grid")}

    listen(view.change, show, {"view": view}, {"axes": axes}, kind=CHOICE)
    return table


def _advanced() -> dict[str, Any]:
    same, steps = _("The same seed gives the same image."), _("Denoising steps, 1 to 200.")
    guidance = _("How closely the image follows the prompt, 1 to 30.")
    clip_skip = _("As the adapter was trained; 2 for most anime models of Stable Diffusion 1.x.")
    size = _("For example 512 x 768; empty = the size that the base model was trained on.")
    unwanted = _("What the image should not show.")
    with gr.Accordion(_("Advanced"), open=False, elem_id="try-advanced"):
        return {
            "seed": field(gr.Number, "seed", _("Seed"), same, value=1),
            "new_seed": field(gr.Checkbox, "fresh", _("A new seed for each image")),
            "steps": field(gr.Number, "try-steps", _("Steps"), steps, value=DEFAULTS[1]),
            "guidance": field(gr.Number, "guidance", _("Guidance"), guidance, value=DEFAULTS[2]),
            "clip_skip": field(gr.Number, "try-clip-skip", _("Clip skip"), clip_skip, value=DEFAULTS[3]),
            "size": field(gr.Textbox, "try-size", _("Size"), size, max_lines=1),
            "negative": field(gr.Textbox, "negative", _("Negative prompt"), unwanted),
            "restore": gr.UploadButton(
                _("Load settings from an image"), file_types=[".png"], size="sm", elem_id="restore-settings"
            ),
        }


def _others() -> dict[str, Any]:
    """Draw the base model, its VAE, and the adapters beside the first, each with its strength."""
    base = _(
        "Empty = the one that the first adapter was trained on here. For adapters from elsewhere: 'micro', a "
        "folder, a .safetensors file, or a name on the Hugging Face Hub. Add adapter files in the Download tab."
    )
    vae = _(
        "Empty = that of the base model. Otherwise a .safetensors file, or a folder in diffusers format, that "
        "replaces it."
    )
    with gr.Accordion(_("Several adapters, other base model"), open=False, elem_id="try-others"):
        return {
            "base": field(gr.Textbox, "try-base", _("Base model"), base),
            "vae": field(gr.Textbox, "try-vae", _("VAE"), vae),
            "others": [_other(number) for number in range(2, 2 + OTHERS)],
        }


def _other(number: int) -> tuple[gr.Dropdown, gr.Number]:
    title, strength = _("Adapter {number}", number=number), _("Strength {number}", number=number)
    with gr.Row(elem_classes="bottom"):
        return (
            field(gr.Dropdown, f"adapter-{number}", title, choices=[NO_ADAPTER], value="", scale=2),
            field(gr.Number, f"strength-{number}", strength, value=1.0, min_width=90),
        )
