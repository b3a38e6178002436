"""Adapter files that the page offers: those of runs, and others that were dropped on the page or written by a tool.

Describes what is in a file and which programs load it, without any model library.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer import paths, runs, storage
from trainer.adapter_files import compatibility, safetensors_reader, summary
from trainer.adapter_files.programs import sources
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import checkpoints
from ui.state.run_watcher import RunWatcher, label
from ui.templates import render

NONE = (_("None (base model only)"), "")
KEPT = "kept:"  # prefix of the keys of files that belong to no run
MAX_LENGTH = 1000  # letters of a fact in a file, which may come from anywhere
_FACTS = {
    "family": _("family"),
    "kind": _("kind"),
    "form": _("format"),
    "ranks": _("ranks"),
    "alphas": _("alphas"),
    "precision": _("precision"),
    "modules": _("modules"),
    "title": _("title"),
    "trigger": _("trigger"),
    "pictures": _("images"),
    "steps": _("steps"),
    "begun": _("started"),
    "trained": _("trained"),
}
_BLOCKS = {"outside": _("outside"), "unknown": _("unknown")}  # others have the names that they have in the model
_COVERS = {"iV": "png", "/9": "jpeg", "Uk": "webp"}  # first letters of an image in base64


def kept() -> list[Path]:
    """List the files that were dropped on the page or written by a tool, by name."""
    return sorted(paths.adapters().glob("*.safetensors"), key=lambda path: path.stem)


def keep(source: Path) -> Path:
    """Move a checked file to the kept ones, under its name or a similar one that is free."""
    folder = paths.adapters()
    folder.mkdir(parents=True, exist_ok=True)
    name = paths.safe_name(source.stem, "adapter")
    return storage.move_numbered(source, folder / f"{name}.safetensors")


def discard(name: str) -> None:
    """Move a kept file to the bin, where it stays for a week.

    Raises:
        UserError: there is no such file.
    """
    storage.move_to_bin(kept_file(name), paths.outputs())


def kept_file(name: str) -> Path:
    """Return the path of a kept file.

    Raises:
        UserError: there is no such file.
    """
    return _existing(paths.adapters() / f"{paths.check_name(name, 'file')}.safetensors")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError("This adapter no longer exists.", "Choose another one.")
    return path


def choices(watch: RunWatcher) -> list[tuple[str, str]]:
    """Return (label, key) of every adapter that can be tried: finished files and checkpoints, kept files, none."""
    listed = []
    for view in watch.views():
        run, name = view.run, label(view.run)
        if view.state.export and (run.folder / view.state.export).is_file():
            listed.append((_("Finished: {run}", run=name), run.id))
        steps = sorted((checkpoint.step for checkpoint in view.state.checkpoints), reverse=True)
        for step in steps:
            if checkpoints.adapter_file(run, step).is_file():
                listed.append((_("Step {step}: {run}", step=step, run=name), f"{run.id}@{step}"))
    files = [(_("File: {name}", name=path.stem), f"{KEPT}{path.stem}") for path in kept()]
    return [*listed, *files, NONE]


def find(key: str) -> Path:
    """Return the file that a key stands for.

    Raises:
        UserError: it no longer exists.
    """
    if key.startswith(KEPT):
        return kept_file(key.removeprefix(KEPT))
    run_id, at, step = key.partition("@")
    run = runs.find(run_id)
    if at and step.isdecimal():
        return _existing(checkpoints.adapter_file(run, int(step)))
    return _existing(run.export)


def run_of(key: str) -> runs.Run | None:
    """Return the run that the file of a key came from; None for a file from elsewhere, or if the run is gone."""
    with suppress(UserError):
        return runs.find(key.partition("@")[0])
    return None


def clip_skip(key: str) -> int:
    """Return the clip skip that the metadata of a file from elsewhere name; 0 if they name none."""
    if not key.startswith(KEPT):
        return 0
    with suppress(UserError):
        path = find(key)
        return summary.clip_skip(_metadata(path, path.stat().st_mtime_ns))
    return 0


@lru_cache(maxsize=100)
def _metadata(path: Path, _changed: int) -> dict[str, str]:
    return safetensors_reader.read(path).metadata


# Contents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """HTML about a file, and whether the file is sound."""

    html: str
    is_valid: bool


def describe(path: Path) -> Described:
    """Render everything about a file: cover, facts, the size of each block, and which programs load it.

    Raises:
        UserError: there is no such file.
    """
    try:
        file = safetensors_reader.read(path)
    except UserError as error:
        if not path.is_file():
            raise
        return Described(render("adapter_file.html", name=path.name, problem=error.message), is_valid=False)
    report = compatibility.of_file(file, path.parent)
    loads = [(verdict.program, verdict.loads, verdict.words) for verdict in report.verdicts]
    facts, cover = summary.describe(file), summary.cover(file.metadata)
    rows = [(title, facts[name]) for name, title in _FACTS.items() if facts[name] not in ("", [], "unknown")]
    if settings := [f"{_(name)} {value}" for name, value in facts["recipe"].items()]:
        rows.append((_("training settings"), settings))
    html = render(
        "adapter_file.html",
        name=path.name,
        problem="",
        size=facts["bytes"],
        cover=cover if cover[:2] in _COVERS else "",
        cover_type=_COVERS.get(cover[:2], ""),
        facts=[(title, _text(value)) for title, value in rows],
        checked=verdicts(loads, (*report.problems, *report.notes)),
        blocks=[(_BLOCKS.get(name, name), count) for name, count in facts["blocks"].items()],
    )
    return Described(html, is_valid=True)


def _text(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:MAX_LENGTH]


def verdicts(loads: Sequence[tuple[str, bool, str]], remarks: Sequence[str] = ()) -> str:
    """Render which programs load a file: a sentence, and a row of (program, loads, explanation) for each."""
    programs = [program for program, loaded, _unused in loads if loaded]
    return render("verdicts.html", programs=programs, remarks=remarks, verdicts=loads, sources=sources())


def table() -> str:
    """Render the kept files with their links; "" if there are none."""
    files = [{"name": path.name, "stem": path.stem, "size": path.stat().st_size} for path in kept()]
    return render("kept_files.html", files=files) if files else ""
