"""Form of the Try out tab: its components, and the values that its handlers get, both by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from trainer.i18n import _
from ui.state import adapter_choices
from ui.tabs import comparison
from ui.widgets.handlers import CHOICE, Several, listen

DEFAULTS = ("", 20, 3.0, 1)  # prompt, steps, guidance and clip skip before an adapter is chosen
OTHERS = 3  # adapters beside the first
NO_ADAPTER = (_("None"), "")
FIELDS = (
    "adapter",
    "prompt",
    "strength",
    "view",
    "seed",
    "new_seed",
    "steps",
    "guidance",
    "clip_skip",
    "size",
    "negative",
    "files",
    "base",
    "vae",
    "table_rows",
    "table_chosen",
    "table_strengths",
)


@dataclass(frozen=True)
class SampleForm:
    """Values of the form. `files` are the images on the page, `others` the further adapters with their strengths."""

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

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "SampleForm":
        """Read the values of `Components.form`."""
        named = {name: values[name] for name in FIELDS}
        for name in ("adapter", "prompt", "size", "negative", "base", "vae", "table_chosen", "table_strengths"):
            named[name] = named[name] or ""
        pairs = zip(values["others"].values(), values["strengths"].values(), strict=True)
        return cls(**named, others=tuple((key or "", strength or 0.0) for key, strength in pairs))


@dataclass(frozen=True)
class Components:
    """Components of the form, named as their values in `SampleForm`; `defaults` are those that were offered last."""

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
    base: gr.Textbox
    vae: gr.Textbox
    table_rows: gr.Radio
    table_chosen: gr.Textbox
    table_strengths: gr.Textbox
    others: list[tuple[gr.Dropdown, gr.Number]]
    defaults: gr.State
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
        return Several(self.named(*FIELDS, "others", "strengths"), SampleForm.read)


def _numbered(components: Sequence[Any]) -> Several:
    return Several({str(number): component for number, component in enumerate(components)})


def build() -> Components:
    """Draw the form."""
    adapter = gr.Dropdown([adapter_choices.NONE], value="", label=_("Adapter"), elem_id="adapter", interactive=True)
    prompt = gr.Textbox(label=_("Prompt"), max_lines=6, elem_id="prompt", interactive=True)
    with gr.Row():
        generate = gr.Button(_("Generate image"), variant="primary", size="lg", elem_id="make", scale=3)
        cancel = gr.Button(_("Cancel"), size="lg", elem_id="cancel", scale=1, min_width=90)
    strength = gr.Slider(
        0,
        1.5,
        value=1.0,
        step=0.05,
        label=_("Strength"),
        info=_("Strength of the adapter; 0 = base model only."),
        elem_id="strength",
        interactive=True,
    )
    view = gr.Radio(comparison.VIEWS, value="one", label=_("Show"), elem_id="try-view", interactive=True)
    table_rows, table_chosen, table_strengths = _table(view)
    base, vae, others = _others()
    return Components(
        adapter=adapter,
        prompt=prompt,
        strength=strength,
        view=view,
        **_advanced(),
        files=gr.State([]),
        base=base,
        vae=vae,
        table_rows=table_rows,
        table_chosen=table_chosen,
        table_strengths=table_strengths,
        others=others,
        defaults=gr.State(DEFAULTS),
        generate=generate,
        cancel=cancel,
    )


def _table(view: gr.Radio) -> tuple[gr.Radio, gr.Textbox, gr.Textbox]:
    """Draw the fields for the axes of the table, which are there while it is chosen."""
    with gr.Column(visible=False, elem_id="table-axes") as axes:
        rows = gr.Radio(comparison.ROWS, value="checkpoints", label=_("Rows"), elem_id="table-rows", interactive=True)
        chosen = gr.Textbox(
            label=_("Which of them"),
            info=_("Steps or seeds as 100 200 300; prompts one per line. Empty = five checkpoints, or seeds 1 to 3."),
            lines=2,
            max_lines=8,
            elem_id="table-chosen",
            interactive=True,
        )
        strengths = gr.Textbox(
            comparison.GRID_STRENGTHS,
            label=_("Strengths of the columns"),
            max_lines=1,
            elem_id="table-strengths",
            interactive=True,
        )
    listen(view.change, lambda *, view: {"axes": gr.Column(visible=view == "grid")}, {"view": view}, {"axes": axes},
           kind=CHOICE)  # fmt: skip
    return rows, chosen, strengths


def _advanced() -> dict[str, Any]:
    with gr.Accordion(_("Advanced"), open=False, elem_id="try-advanced"):
        return {
            "seed": gr.Number(
                1, label=_("Seed"), info=_("The same seed gives the same image."), elem_id="seed", interactive=True
            ),
            "new_seed": gr.Checkbox(False, label=_("A new seed for each image"), elem_id="fresh", interactive=True),
            "steps": gr.Number(
                DEFAULTS[1],
                label=_("Steps"),
                info=_("Denoising steps, 1 to 200."),
                elem_id="try-steps",
                interactive=True,
            ),
            "guidance": gr.Number(
                DEFAULTS[2],
                label=_("Guidance"),
                info=_("How closely the image follows the prompt, 1 to 30."),
                elem_id="guidance",
                interactive=True,
            ),
            "clip_skip": gr.Number(
                DEFAULTS[3],
                label=_("Clip skip"),
                info=_("As the adapter was trained; 2 for most anime models of Stable Diffusion 1.x."),
                elem_id="try-clip-skip",
                interactive=True,
            ),
            "size": gr.Textbox(
                label=_("Size"),
                info=_("For example 512 x 768; empty = the size that the base model was trained on."),
                max_lines=1,
                elem_id="try-size",
                interactive=True,
            ),
            "negative": gr.Textbox(
                label=_("Negative prompt"),
                info=_("What the image should not show."),
                elem_id="negative",
                interactive=True,
            ),
            "restore": gr.UploadButton(
                _("Load settings from an image"), file_types=[".png"], size="sm", elem_id="restore-settings"
            ),
        }


def _others() -> tuple[gr.Textbox, gr.Textbox, list[tuple[gr.Dropdown, gr.Number]]]:
    """Draw the base model, its VAE, and the adapters beside the first, each with its strength."""
    with gr.Accordion(_("Several adapters, other base model"), open=False, elem_id="try-others"):
        base = gr.Textbox(
            label=_("Base model"),
            info=_(
                "Empty = the one that the first adapter was trained on here. For adapters from elsewhere: 'micro', a "
                "folder, a .safetensors file, or a name on the Hugging Face Hub. Add adapter files in the Download tab."
            ),
            elem_id="try-base",
            interactive=True,
        )
        vae = gr.Textbox(
            label=_("VAE"),
            info=_(
                "Empty = that of the base model. Otherwise a .safetensors file, or a folder in diffusers format, that "
                "replaces it."
            ),
            elem_id="try-vae",
            interactive=True,
        )
        others = [_other(number) for number in range(2, 2 + OTHERS)]
    return base, vae, others


def _other(number: int) -> tuple[gr.Dropdown, gr.Number]:
    with gr.Row(elem_classes="bottom"):
        adapter = gr.Dropdown(
            [NO_ADAPTER],
            value="",
            label=_("Adapter {number}", number=number),
            elem_id=f"adapter-{number}",
            interactive=True,
            scale=2,
        )
        strength = gr.Number(
            1.0,
            label=_("Strength {number}", number=number),
            elem_id=f"strength-{number}",
            interactive=True,
            min_width=90,
        )
    return adapter, strength
