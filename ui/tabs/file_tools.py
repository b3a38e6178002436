"""Lower part of the Download tab: look into any adapter file, and make new files from others.

The tools are the `limner` commands of the same names. They run as processes of their own, as the page loads no model
library.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import foreign_text, paths, processes
from trainer.errors import UserError
from trainer.i18n import _, file_size
from ui.state import adapter_choices, pending_uploads
from ui.state.run_watcher import RunWatcher
from ui.widgets.handlers import CHOICE, Several, listen, sentence

TIMEOUT = 6 * 3600.0  # seconds: extraction from large models on a slow machine takes hours
TOOLS = [
    (_("Merge several into one"), "merge"),
    (_("Reduce the size"), "resize"),
    (_("Convert format or precision"), "convert"),
    (_("Extract from two models"), "extract"),
    (_("Bake into a base model"), "bake"),
]
USES = {
    "merge": {"adapters", "strengths", "rank", "format", "precision"},
    "resize": {"adapters", "rank", "energy", "format", "precision"},
    "convert": {"adapters", "format", "precision", "strip"},
    "extract": {"tuned", "base", "rank", "format", "precision"},
    "bake": {"adapters", "strengths", "base"},
}
WORKING = f"<p class='quiet' role='status'>{_('Working. You can switch to another tab while it runs.')}</p>"


@dataclass(frozen=True)
class Request:
    """Values of the fields of the tools."""

    tool: str
    adapters: list[str]
    strengths: str = ""
    rank: float | None = 0
    energy: float | None = 1.0
    format: str = "kohya"
    precision: str = "fp16"
    strip: bool = False
    tuned: str = ""
    base: str = ""
    name: str = ""


@dataclass(frozen=True)
class Tab:
    """The component that offers the adapters."""

    adapters: gr.Dropdown


def build(
    watch: RunWatcher, listing: gr.HTML, filtered: Mapping[str, Any], listed: Callable[..., Mapping[str, Any]]
) -> Tab:
    """Draw this part; `listed` redraws `listing` when there is a new file, from what `filtered` is read as."""
    with gr.Accordion(_("Inspect an adapter file"), open=False, elem_id="look"):
        dropped = gr.File(
            label=_("Any .safetensors file. A copy stays here, so that you can try it out and use it with the tools."),
            file_types=[".safetensors"],
            elem_id="look-file",
            interactive=True,
        )
        description = gr.HTML(elem_id="look-result")
    with gr.Accordion(_("Tools for adapter files"), open=False, elem_id="tools"):
        tool = gr.Radio(TOOLS, value="merge", label=_("Tool"), elem_id="tool", interactive=True)
        components = _components()
        make = gr.Button(_("Create file"), variant="primary", elem_id="tool-make")
        result = gr.HTML(elem_id="tool-result")

    def refreshed(chosen: object) -> dict[str, Any]:
        files = gr.update(choices=adapter_choices.choices(watch)[:-1])
        return {"listing": listed(watch, chosen)["listing"], "adapters": files}

    def look(*, path: str | None, chosen: object) -> dict[str, Any]:
        return {"path": None, "description": take(path), **refreshed(chosen)}

    def work(*, request: Request, chosen: object) -> Iterator[dict[str, Any]]:
        yield {"result": WORKING}
        try:
            html = run(request)
        except UserError as error:
            html = f"<p role='alert'>{escape(sentence(error))}</p>"
        yield {"result": html, **refreshed(chosen)}

    refreshing = {"listing": listing, "adapters": components["adapters"]}
    looking = {"path": dropped, "description": description, **refreshing}
    listen(dropped.upload, look, {"path": dropped, **filtered}, looking, show_progress="minimal")
    options = Several({name: component for name, component in components.items() if name != "name"})

    def show_options(*, tool: str) -> dict[str, Any]:
        return {"options": {option: gr.update(visible=option in USES[tool]) for option in options.components}}

    listen(tool.change, show_options, {"tool": tool}, {"options": options}, kind=CHOICE)
    request = Several({"tool": tool, **components}, lambda values: Request(**values))
    working = {"result": result, **refreshing}
    listen(make.click, work, {"request": request, **filtered}, working, concurrency_id="tools")
    return Tab(components["adapters"])


def _components() -> dict[str, Any]:
    """Draw the fields, by their names in `Request` and in its order; at first those that merging uses are visible."""
    formats = [(_("kohya: for all programs"), "kohya"), (_("PEFT: for diffusers"), "peft")]
    drawn = {
        "adapters": gr.Dropdown([], multiselect=True, label=_("Adapters"), elem_id="tool-adapters", interactive=True),
        "strengths": gr.Textbox(
            label=_("Strengths"),
            info=_("One for each adapter, in the same order: 1, 0.5. Empty = 1 each."),
            elem_id="tool-strengths",
            interactive=True,
        ),
        "rank": gr.Number(
            0,
            label=_("Rank"),
            info=_("Maximum rank of a layer; 0 = no limit."),
            elem_id="tool-rank",
            interactive=True,
        ),
        "energy": gr.Number(
            1.0,
            label=_("Energy share"),
            info=_("Share of its squared norm that each layer keeps, such as 0.95; 1 = all."),
            elem_id="tool-energy",
            interactive=True,
            visible=False,
        ),
        "format": gr.Dropdown(formats, value="kohya", label=_("Format"), elem_id="tool-form", interactive=True),
        "precision": gr.Dropdown(
            ["fp16", "bf16", "fp32"], value="fp16", label=_("Precision"), elem_id="tool-precision", interactive=True
        ),
        "strip": gr.Checkbox(
            False,
            label=_("Leave out training settings, tags and cover"),
            elem_id="tool-strip",
            interactive=True,
            visible=False,
        ),
        "tuned": gr.Textbox(
            label=_("Tuned model"),
            info=_("Folder or .safetensors file."),
            elem_id="tool-tuned",
            interactive=True,
            visible=False,
        ),
        "base": gr.Textbox(
            label=_("Base model"),
            info=_("'micro', a folder, a .safetensors file, or a name on the Hugging Face Hub."),
            elem_id="tool-base",
            interactive=True,
            visible=False,
        ),
        "name": gr.Textbox(label=_("Name of the new file"), elem_id="tool-name", interactive=True),
    }
    return drawn


def take(path: str | None) -> str:
    """Keep a dropped file if it is valid; returns a description of it."""
    if not path:
        return ""
    try:
        description = adapter_choices.describe(Path(path))
        if "role='alert'" not in description:
            adapter_choices.keep(Path(path))
    finally:
        pending_uploads.discard([Path(path)])
    return description


# Commands -------------------------------------------------------------------------------------------------------


def arguments(request: Request, out: Path) -> list[str]:
    """Return the `limner` command of a request.

    Raises:
        UserError: a value is missing or invalid.
    """
    uses = USES.get(request.tool, set())
    adapters = _adapters(request) if "adapters" in uses else []
    models = [_model(request, name) for name in ("tuned", "base") if name in uses]
    command = [request.tool, *models, *adapters]
    if "rank" in uses:
        rank = _rank(request)
        if rank:
            command += ["--rank", str(rank)]
    if "energy" in uses:
        command += ["--energy", repr(_energy(request))]
        if request.rank == 0 and request.energy == 1:
            raise UserError("There is nothing to reduce.", "Set a target rank, or an energy share below 1.")
    if "format" in uses:
        command += ["--to", request.format, "--precision", request.precision]
    if "strip" in uses and request.strip:
        command.append("--strip")
    return [*command, "--out", str(out), "--json"]


def _adapters(request: Request) -> list[str]:
    files = [str(adapter_choices.find(key)) for key in request.adapters or ()]
    if not files:
        raise UserError("No adapter is chosen.", "Choose at least one.")
    if "strengths" not in USES[request.tool]:
        if len(files) > 1:
            raise UserError("This tool works on one adapter at a time.", "Choose one.")
        return files
    strengths = _strengths(request, len(files))
    weighted = [f"{file}:{strength!r}" for file, strength in zip(files, strengths, strict=True)]
    if request.tool == "merge":
        return weighted
    return [part for adapter in weighted for part in ("--adapter", adapter)]


def _strengths(request: Request, count: int) -> list[float]:
    texts = [text for text in request.strengths.replace(";", ",").split(",") if text.strip()]
    try:
        values = [float(text) for text in texts] or [1.0] * count
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError("Enter one strength per adapter, {count} in all.", "Write them as 1, 0.5.", count=count)
    return values


def _model(request: Request, name: str) -> str:
    value = str(getattr(request, name)).strip()
    if not value or value.startswith("-"):
        missing = {"tuned": _("The tuned model is missing."), "base": _("The base model is missing.")}
        raise UserError(missing[name], "Enter its folder, file or name.")
    return value


def _rank(request: Request) -> int:
    least = 1 if request.tool == "extract" else 0
    value = request.rank
    if value is None or value != int(value) or not least <= value <= 4096:
        raise UserError("The rank must be a whole number from {least} to 4096.", "Correct it.", least=least)
    return int(value)


def _energy(request: Request) -> float:
    value = request.energy
    if value is None or not 0 < value <= 1:
        raise UserError("The energy share must be above 0 and at most 1.", "Correct it.")
    return float(value)


def run(request: Request) -> str:
    """Carry out a request; returns the result as HTML.

    Raises:
        UserError: the tool refused it.
    """
    if not paths.safe_name(request.name, ""):
        raise UserError("The new file has no name yet.", "Type one.")
    if request.tool == "bake":
        out = _model_path(request)
        facts = call(arguments(request, out))
        path = f"outputs/.models/{escape(out.name)}"
        text = _("Done: {layers} layers changed. The model is {path}.", layers=facts["layers"], path=path)
        return f"<p>{text}</p>"
    paths.uploads().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.uploads()) as folder:
        made = Path(folder) / f"{paths.safe_name(request.name, 'adapter')}.safetensors"
        facts = call(arguments(request, made))
        out = adapter_choices.keep(made)
    link = f"<a class='download' download href='/download/kept/{quote(out.name)}'>{escape(out.name)}</a>"
    error = _("It is exact up to rounding.")
    if facts["error"]:
        error = _(
            "Its error is {error:.2%} overall, and {most:.2%} in the worst layer.",
            error=facts["error"],
            most=facts["worst_layer_error"],
        )
    notes = "".join(f"<p>{escape(note)}</p>" for note in facts["notes"])
    return f"<p>{link} ({file_size(facts['bytes'])}). {error}</p>{notes}{adapter_choices.describe(out)}"


def _model_path(request: Request) -> Path:
    """Return the path of a new model: a file if its base model is one, else a folder."""
    folder = paths.outputs() / ".models"
    folder.mkdir(exist_ok=True)
    name = paths.safe_name(request.name, "model")
    if request.base.strip().lower().endswith(".safetensors"):
        name += ".safetensors"
    return folder / name


def call(command: Sequence[str]) -> dict[str, Any]:
    """Run a `limner` command; returns its JSON output.

    Raises:
        UserError: the command refused its arguments, or it took too long.
    """
    command = [sys.executable, "-m", "trainer", *command]
    with processes.start(command, stdout=processes.PIPE, stderr=processes.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise UserError("This took too long and was stopped.", "Try a smaller rank.") from None
    if process.returncode in (1, 2) and errors.strip() and "Traceback" not in errors:
        raise UserError(errors.strip().splitlines()[-1], "")
    if process.returncode:
        raise RuntimeError(errors)
    facts: dict[str, Any] = foreign_text.parse_json(output.splitlines()[-1])
    return facts
