"""Adapter files that the page can use: those of runs, and those that are kept: dropped on the page or made by a tool.

What is in a file, and which programs load it, is told here without any model library.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer import paths, runs, storage
from trainer.adapter_files import compatibility, safetensors_reader, summary
from trainer.errors import UserError
from trainer.i18n import say
from ui.server import media
from ui.state.run_watcher import Watch, label

NONE = (say("None, the base model alone"), "")
KEPT = "kept:"
LONGEST = 1000  # letters of a fact in a file, which may come from anywhere
_FACTS = {
    "family": say("family"), "kind": say("kind"), "form": say("form"), "ranks": say("ranks"), "alphas": say("alphas"),
    "precision": say("precision"), "modules": say("modules"), "title": say("title"), "trigger": say("trigger"),
    "pictures": say("pictures"), "steps": say("steps"), "begun": say("begun"), "trained": say("trained"),
}  # fmt: skip
_BLOCKS = {"outside": say("outside"), "unknown": say("unknown")}  # others are called as in the model


def kept() -> list[Path]:
    """Files that were dropped on the page or made by a tool, by name."""
    folder = media.kept()
    found = folder.glob("*.safetensors") if folder.is_dir() else ()
    return sorted(found, key=lambda path: path.stem)


def keep(source: Path) -> Path:
    """Copy a file that was checked to those that are kept, under its name or one like it that is free."""
    folder = media.kept()
    folder.mkdir(parents=True, exist_ok=True)
    name = paths.safe_name(source.stem, "adapter")
    return storage.create_numbered(folder / f"{name}.safetensors", [source.read_bytes()])


def discard(name: str) -> None:
    """Move a kept file to the bin, where it stays for a week.

    Raises:
        UserError: it is not there.
    """
    path = kept_file(name)
    bin_folder = paths.outputs() / storage.BIN
    target, number = bin_folder / path.name, 1
    while target.exists():
        number += 1
        target = bin_folder / f"{path.stem}-{number}{path.suffix}"
    storage.move_to_bin(path, target)


def kept_file(name: str) -> Path:
    """A kept file by its name.

    Raises:
        UserError: there is none of this name.
    """
    path = media.kept() / f"{paths.check_name(name, 'file')}.safetensors"
    if not path.is_file():
        raise UserError("This adapter is no longer there.", "Choose another one.")
    return path


def choices(watch: Watch) -> list[tuple[str, str]]:
    """(label, key) of everything that can be tried: finished files, checkpoints, then kept files."""
    found = []
    for view in watch.every():
        if view.state.export and (view.run.folder / view.state.export).is_file():
            found.append((say("Finished: {run}", run=label(view.run)), view.run.id))
        for one in sorted(view.state.checkpoints, key=lambda checkpoint: -checkpoint.step):
            if media.checkpoint_file(view.run, one.step).is_file():
                told = say("Step {step}: {run}", step=one.step, run=label(view.run))
                found.append((told, f"{view.run.id}@{one.step}"))
    return [*found, *((say("File: {name}", name=path.stem), f"{KEPT}{path.stem}") for path in kept()), NONE]


def find(key: str) -> Path:
    """The file that a key stands for.

    Raises:
        UserError: it is not there any more.
    """
    if key.startswith(KEPT):
        return kept_file(key.removeprefix(KEPT))
    run_id, at, step = key.partition("@")
    run = runs.find(run_id)
    path = media.checkpoint_file(run, int(step)) if at and step.isdecimal() else run.export
    if not path.is_file():
        raise UserError("This adapter is no longer there.", "Choose another one.")
    return path


def run_of(key: str) -> runs.Run | None:
    """The run that a key's file came from; None for a file that came from elsewhere."""
    return runs.find(key.partition("@")[0]) if key and not key.startswith(KEPT) else None


# What is in them ------------------------------------------------------------------------------------------------


def describe(path: Path) -> str:
    """A file in full: its cover, what is in it, how large each block is, and who loads it.

    Raises:
        UserError: there is no such file.
    """
    report = compatibility.check(path)
    checked = verdicts(
        [(one.program, one.loads, one.words) for one in report.verdicts], (*report.problems, *report.notes)
    )
    try:
        file = safetensors_reader.read(path)
    except UserError as error:
        return f"<div class='look'><h3>{escape(path.name)}</h3><p role='alert'>{escape(error.message)}</p></div>"
    facts, cover = summary.describe(file), summary.cover(file.metadata)
    kind = {"iV": "png", "/9": "jpeg", "Uk": "webp"}.get(cover[:2])
    picture = f"<img alt='{say('Cover')}' src='data:image/{kind};base64,{cover}'>" if kind else ""
    rows = "".join(_row(told, facts[name]) for name, told in _FACTS.items() if facts[name] not in ("", [], "unknown"))
    recipe = [f"{say(name)} {value}" for name, value in facts["recipe"].items()]
    rows += _row(say("recipe"), recipe) if recipe else ""
    blocks = "".join(_row(_BLOCKS.get(name, name), size(count)) for name, count in facts["blocks"].items())
    return (
        f"<div class='look'><h3>{escape(path.name)}, {size(facts['bytes'])}</h3>{picture}<table>{rows}</table>{checked}"
        f"<details class='notes'><summary>{say('Size of each block')}</summary><table>{blocks}</table></details></div>"
    )


def _row(name: str, value: Any) -> str:  # noqa: ANN401 - a fact of any kind
    text = (", ".join(map(str, value)) if isinstance(value, list) else str(value))[:LONGEST]
    return f"<tr><th scope='row'>{escape(name)}</th><td>{escape(text)}</td></tr>"


def verdicts(found: Sequence[tuple[str, bool, str]], remarks: Sequence[str] = ()) -> str:
    """Render which programs load a file: a sentence, and a line for each program."""
    loads = [program for program, fine, _ in found if fine]
    sentence = say("Checked: no program loads it")
    if loads:
        sentence = say("Checked: loads in {programs}", programs=", ".join(loads))
    told = "".join(f"<p>{escape(one)}</p>" for one in remarks)
    rows = "".join(
        f"<tr class='{'yes' if fine else 'no'}'><th scope='row'>{escape(program)}</th>"
        f"<td>{say('yes') if fine else say('no')}</td><td>{escape(words)}</td></tr>"
        for program, fine, words in found
    )
    return f"<details class='notes verdicts'><summary>{sentence}</summary>{told}<table>{rows}</table></details>"


def table() -> str:
    """The kept files with their links."""
    rows = "".join(
        f"<li><a class='download' download href='/download/kept/{quote(path.name)}'>{escape(path.name)} "
        f"({size(path.stat().st_size)})</a> <button type='button' class='bin' data-file='{escape(path.stem)}' "
        f"data-label='{escape(path.name)}'>{say('Delete')}</button></li>"
        for path in kept()
    )
    return f"<div class='kept'><h2>{say('Other files')}</h2><ul>{rows}</ul></div>" if rows else ""


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{max(1, round(count / 1024))} KB"
