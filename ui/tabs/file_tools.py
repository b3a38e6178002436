"""Below the files of tab 4: look into a file from anywhere, and make new files of others.

The tools are the commands of the same names: they run as processes of their own, as the page loads no model library.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import paths
from trainer.errors import UserError
from trainer.i18n import say
from ui.state import adapter_choices
from ui.state.run_watcher import Watch
from ui.widgets.handlers import QUIET, handled, sentence

HOURS = 6 * 3600.0  # the longest that a tool may take: extraction from large models on a slow machine
TOOLS = [
    (say("Merge several into one"), "merge"), (say("Make smaller"), "resize"),
    (say("Other form or precision"), "convert"), (say("Extract from two models"), "extract"),
    (say("Bake into a base model"), "bake"),
]  # fmt: skip
USES = {
    "merge": {"chosen", "strengths", "rank", "form", "precision"},
    "resize": {"chosen", "rank", "energy", "form", "precision"},
    "convert": {"chosen", "form", "precision", "strip"},
    "extract": {"tuned", "base", "rank", "form", "precision"},
    "bake": {"chosen", "strengths", "base"},
}
WORKING = f"<p class='quiet' role='status'>{say('Working. You can leave this tab meanwhile.')}</p>"


@dataclass(frozen=True)
class Request:
    """Values of the tools' fields."""

    tool: str
    chosen: list[str]
    strengths: str = ""
    rank: float | None = 0
    energy: float | None = 1.0
    form: str = "kohya"
    precision: str = "fp16"
    strip: bool = False
    tuned: str = ""
    base: str = ""
    name: str = ""


@dataclass(frozen=True)
class Tab:
    """The component that offers the adapters."""

    chosen: gr.Dropdown


def build(watch: Watch, listing: gr.HTML, table: Any) -> Tab:  # noqa: ANN401 - a function of no arguments
    """Draw this part; `listing` is drawn anew by `table` when there is a new file."""
    with gr.Accordion(say("Look into an adapter file"), open=False, elem_id="look"):
        dropped = gr.File(
            file_types=[".safetensors"], elem_id="look-file", interactive=True,
            label=say("Any .safetensors file; it is kept here, so that you can try it out and use it with the tools."),
        )  # fmt: skip
        looked = gr.HTML(elem_id="look-result")
    with gr.Accordion(say("Tools for adapter files"), open=False, elem_id="tools"):
        tool = gr.Radio(TOOLS, value="merge", label=say("What to do"), elem_id="tool", interactive=True)
        fields = _fields()
        make = gr.Button(say("Make the file"), variant="primary", elem_id="tool-make")
        result = gr.HTML(elem_id="tool-result")

    def look(path: str | None) -> list[Any]:
        return [*take(path), table(), gr.Dropdown(adapter_choices.choices(watch)[:-1])]

    def work(*given: Any) -> Iterator[list[Any]]:  # noqa: ANN401 - values of the fields
        yield [WORKING, gr.skip(), gr.skip()]
        try:
            said = run(Request(given[0], *given[1:]))
        except UserError as error:
            said = f"<p role='alert'>{escape(sentence(error))}</p>"
        yield [said, table(), gr.Dropdown(adapter_choices.choices(watch)[:-1])]

    dropped.upload(
        handled(look), dropped, [dropped, looked, listing, fields["chosen"]],
        api_visibility="private", show_progress="minimal",
    )  # fmt: skip
    tool.change(handled(lambda name: [gr.update(visible=one in USES[name]) for one in fields if one != "name"]),
                tool, [field for name, field in fields.items() if name != "name"], **QUIET)  # fmt: skip
    make.click(
        handled(work), [tool, *fields.values()], [result, listing, fields["chosen"]],
        concurrency_id="tools", concurrency_limit=1, **QUIET,
    )  # fmt: skip
    return Tab(fields["chosen"])


def _fields() -> dict[str, Any]:
    """The fields by the names that `Request` has for them, in its order; at first those that merging uses."""
    shown = USES["merge"]
    return {
        "chosen": gr.Dropdown(
            [], multiselect=True, label=say("Adapters"), elem_id="tool-adapters", interactive=True,
        ),
        "strengths": gr.Textbox(
            label=say("Strengths"), info=say("One for each, in the same order: 1, 0.5. Empty = 1 each."),
            elem_id="tool-strengths", interactive=True,
        ),
        "rank": gr.Number(
            0, label=say("Rank"), info=say("The most that a layer may have; 0 = as it comes."), elem_id="tool-rank",
            interactive=True,
        ),
        "energy": gr.Number(
            1.0, label=say("Energy share"), elem_id="tool-energy", interactive=True, visible="energy" in shown,
            info=say("What each layer keeps of its squared effect, such as 0.95; 1 = all."),
        ),
        "form": gr.Dropdown(
            [(say("kohya: for all programs"), "kohya"), (say("PEFT: for diffusers"), "peft")], value="kohya",
            label=say("Form"), elem_id="tool-form", interactive=True,
        ),
        "precision": gr.Dropdown(
            ["fp16", "bf16", "fp32"], value="fp16", label=say("Precision"), elem_id="tool-precision", interactive=True,
        ),
        "strip": gr.Checkbox(
            False, label=say("Leave out recipe, tags and cover"), elem_id="tool-strip", interactive=True,
            visible="strip" in shown,
        ),
        "tuned": gr.Textbox(
            label=say("Tuned model"), info=say("Folder or .safetensors file."), elem_id="tool-tuned", interactive=True,
            visible="tuned" in shown,
        ),
        "base": gr.Textbox(
            label=say("Base model"), info=say("'micro', folder, .safetensors file, or name on the hub."),
            elem_id="tool-base", interactive=True, visible="base" in shown,
        ),
        "name": gr.Textbox(label=say("Name of the new file"), elem_id="tool-name", interactive=True),
    }  # fmt: skip


def take(path: str | None) -> list[Any]:
    """Keep a dropped file if it is sound, and tell what is in it; the drop zone is emptied."""
    if not path:
        return [None, ""]
    told = adapter_choices.describe(Path(path))
    if "role='alert'" not in told:
        adapter_choices.keep(Path(path))
    return [None, told]


def arguments(request: Request, out: Path) -> list[str]:
    """The command of a request, after `limner`.

    Raises:
        UserError: something is missing or is no number.
    """
    uses = USES.get(request.tool, set())
    chosen = [str(adapter_choices.find(key)) for key in request.chosen or ()] if "chosen" in uses else []
    if "chosen" in uses and not chosen:
        raise UserError("No adapter is chosen.", "Choose at least one.")
    if request.tool in ("resize", "convert") and len(chosen) > 1:
        raise UserError("This works on one adapter at a time.", "Choose one.")
    found = [request.tool]
    if "strengths" in uses:
        given = [
            f"{file}:{strength!r}" for file, strength in zip(chosen, _strengths(request, len(chosen)), strict=True)
        ]
        found += given if request.tool == "merge" else [part for one in given for part in ("--adapter", one)]
    else:
        found += chosen
    models = [(name, getattr(request, name).strip()) for name in ("tuned", "base") if name in uses]
    for name, value in models:
        if not value or value.startswith("-"):
            missing = {"tuned": say("The tuned model is missing."), "base": say("The base model is missing.")}[name]
            raise UserError(missing, "Give its folder, its file or its name.")
    found[1:1] = [value for _, value in models]
    if "rank" in uses and (rank := _whole(request.rank, least=1 if request.tool == "extract" else 0)):
        found += ["--rank", str(rank)]
    if "energy" in uses:
        found += ["--energy", repr(_share(request.energy))]
        if "--rank" not in found and request.energy == 1:
            raise UserError("It is not said how small.", "Give a rank, or an energy share below 1.")
    if "form" in uses:
        found += ["--to", request.form, "--precision", request.precision]
    return [*found, *(["--strip"] if "strip" in uses and request.strip else []), "--out", str(out), "--json"]


def _strengths(request: Request, count: int) -> list[float]:
    texts = [one for one in request.strengths.replace(";", ",").split(",") if one.strip()]
    try:
        values = [float(one) for one in texts] or [1.0] * count
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(one) for one in values):
        raise UserError("There are {count} adapters, but not as many strengths.", "Write them as 1, 0.5.", count=count)
    return values


def _whole(value: float | None, *, least: int) -> int:
    if value is None or value != int(value) or not least <= value <= 4096:
        raise UserError("The rank must be a whole number from {least} to 4096.", "Correct it.", least=least)
    return int(value)


def _share(value: float | None) -> float:
    if value is None or not 0 < value <= 1:
        raise UserError("The energy share must be above 0 and at most 1.", "Correct it.")
    return float(value)


def run(request: Request) -> str:
    """Do what is asked for, and tell how it went.

    Raises:
        UserError: what the tool refused.
    """
    if not paths.safe_name(request.name, ""):
        raise UserError("The new file has no name yet.", "Type one.")
    if request.tool == "bake":
        out = _model_path(request)
        facts = call(arguments(request, out))
        told = say(
            "Done: {layers} layers changed. The model is {path}.", layers=facts["layers"],
            path=f"outputs/.models/{escape(out.name)}",
        )  # fmt: skip
        return f"<p>{told}</p>"
    paths.uploads().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.uploads()) as folder:
        made = Path(folder) / f"{paths.safe_name(request.name, 'adapter')}.safetensors"
        facts = call(arguments(request, made))
        out = adapter_choices.keep(made)
    link = f"<a class='download' download href='/download/kept/{quote(out.name)}'>{escape(out.name)}</a>"
    error = say("It is exact up to the rounding of its precision.")
    if facts["error"]:
        error = say(
            "It is {error:.2%} off in all, {most:.2%} in the layer where it is most.", error=facts["error"],
            most=facts["worst_layer_error"],
        )  # fmt: skip
    notes = "".join(f"<p>{escape(one)}</p>" for one in facts["notes"])
    return f"<p>{link} ({adapter_choices.size(facts['bytes'])}). {error}</p>{notes}{adapter_choices.describe(out)}"


def _model_path(request: Request) -> Path:
    folder = paths.outputs() / ".models"
    folder.mkdir(exist_ok=True)
    single = request.base.strip().lower().endswith(".safetensors")
    return folder / (paths.safe_name(request.name, "model") + (".safetensors" if single else ""))


def call(command: Sequence[str]) -> dict[str, Any]:
    """Run a command of the command line; returns what it tells.

    Raises:
        UserError: what it refused, or that it failed.
    """
    try:
        done = subprocess.run(  # an argument list, no shell
            [sys.executable, "-m", "trainer", *command], cwd=paths.CODE, capture_output=True, text=True,
            timeout=HOURS, encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError("This took too long and was given up.", "Try a smaller rank.") from None
    if done.returncode in (1, 2) and done.stderr.strip() and "Traceback" not in done.stderr:
        raise UserError(done.stderr.strip().splitlines()[-1], "")
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
