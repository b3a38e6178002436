"""A backup gives back the same project or run, under a name that is free; one that means harm gives nothing."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.integration.runs.test_processes import limner, make
from tests.integration.training.test_train import same
from tests.workers import Workers
from trainer import config, paths, runs
from trainer.adapter_files import reader
from trainer.errors import UserError
from trainer.runs import Run, backup, checkpoints
from ui.state import page_memory

Files = dict[str, bytes]
Change = Callable[[dict[str, Any], Files], None]


def files(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and paths.CACHE not in path.parts and path.suffix != ".md"
    }


@pytest.fixture
def project(character: Path) -> Path:
    """A project with captions of several lines, masks of each kind, odd names, and answers."""
    (character / "01.txt").write_text("one caption\nanother caption\n")
    (character / "01.png").rename(character / "A picture (1) \u00e4.png")
    (character / "01.txt").rename(character / "A picture (1) \u00e4.txt")
    (character / "masks").mkdir()
    for mask in ("02.mask.png", "03-masklabel.png", "masks/04.png"):
        Image.new("L", (64, 64), 200).save(character / mask)
    shutil.copy(character / "05.png", character / "05 again.png")  # twice on purpose: it counts twice
    page_memory.remember("rin", "trigger", "miraxo")
    page_memory.remember("rin", "base", "/home/anna/models/secret.safetensors")
    return character


@pytest.mark.slow
def test_a_restored_project_trains_to_the_same_bits(project: Path, tiny_sd: Path, workers: Workers) -> None:
    whole = project.parent.parent / "rin.zip"
    done = limner("export", "rin", whole)
    assert done.returncode == 0, done.stderr
    assert b"secret" not in whole.read_bytes()
    first = make(str(tiny_sd), steps=4, resolution=64)
    assert workers.work(first) == 0
    done = limner("import", whole)
    assert (done.returncode, done.stdout) == (0, "Restored the project rin-2.\n"), done.stderr
    restored = project.with_name("rin-2")
    assert (files(restored), page_memory.answer("rin-2", "trigger")) == (files(project), "miraxo")
    second = runs.create(first.config().model_copy(update={"dataset": "rin-2", "record": config.Record()}))
    assert workers.work(second) == 0
    assert same(load_file(second.export), load_file(first.export))
    assert runs.look(second).state.losses == runs.look(first).state.losses


@pytest.mark.slow
def test_a_restored_run_can_be_resumed_and_tried(
    character: Path, tiny_sd: Path, home: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(str(tiny_sd), steps=8, resolution=64)
    assert workers.work(run, "nan@7") == 2
    assert [folder.name for folder in checkpoints.folders(run)] == ["000005"]
    (run.folder / "measured" / "images").mkdir(parents=True)
    for name in ("table.json", "images/1.png"):
        (run.folder / "measured" / name).write_text("measured")
    assert limner("export", run.id, home / "run.zip").returncode == 0
    assert workers.work(run) == 0
    elsewhere = home / "elsewhere"
    shutil.copytree(home / "datasets", elsewhere / "datasets")
    monkeypatch.setenv("LIMNER_HOME", str(elsewhere))
    done = limner("import", home / "run.zip")
    assert (done.returncode, done.stdout) == (0, f"Restored the run {run.id}.\n"), done.stderr
    restored = runs.find(run.id)
    assert runs.look(restored).status == "failed"
    assert [path.name for path in (restored.folder / "measured").iterdir()] == ["table.json"], (
        "images can be made again"
    )
    assert workers.work(restored) == 0
    assert restored.export.read_bytes()[-1000:] == run.export.read_bytes()[-1000:]
    reader.read(restored.export)
    assert limner("import", home / "run.zip").stdout == f"Restored the run {run.id}-2.\n"


def test_what_runs_or_is_not_there_is_not_backed_up(character: Path, tiny_sd: Path, home: Path) -> None:
    run = make(str(tiny_sd), steps=8, resolution=64)
    (run.folder / "ask" / "start").touch()
    done = limner("export", run.id, home / "x.zip")
    assert (done.returncode, done.stderr) == (
        2,
        "This run is still running. Stop it first, or wait until it has ended.\n",
    )
    for name in ("nobody", "../rin", "."):
        done = limner("export", name, home / "x.zip")
        assert done.returncode == 2
        assert "There is no project or run" in done.stderr
    assert not (home / "x.zip").exists()
    assert limner("import", home / "x.zip").stderr == "There is no file x.zip. Check the path.\n"


def test_two_restore_at_once_and_neither_is_lost(character: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.write_project("rin", home / "rin.zip")
    shutil.rmtree(character)
    inner: list[backup.Restored] = []

    def other(name: str) -> None:  # while the first one is unpacked
        if name == "01.png" and not inner:
            inner.append(backup.Restored("project", ""))
            inner[0] = backup.restore_here(home / "rin.zip", lambda name: None)

    restored = backup.restore_here(home / "rin.zip", other)
    assert (inner[0].name, restored.name) == ("rin", "rin-2")
    assert files(home / "datasets" / "rin") == files(home / "datasets" / "rin-2")


# Harm -----------------------------------------------------------------------------------------------------------


def packed(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def changed(whole: Path, change: Change, method: int = zipfile.ZIP_STORED) -> bytes:
    """A backup with other files, whose list is that of the new ones unless the change makes it another."""
    with zipfile.ZipFile(whole) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    contents = json.loads(entries.pop(backup.CONTENTS))
    change(contents, entries)
    return packed([(backup.CONTENTS, json.dumps(contents).encode()), *entries.items()], method)


def put(path: str, data: bytes) -> Change:
    """A change that puts a file in, with its right checksum."""

    def change(contents: dict[str, Any], entries: Files) -> None:
        entries[f"{contents['name']}/{path}"] = data
        contents["sha256"][path] = hashlib.sha256(data).hexdigest()

    return change


def set_name(name: str) -> Change:
    def change(contents: dict[str, Any], entries: Files) -> None:
        for path in list(entries):
            entries[f"{name}/{path.partition('/')[2]}"] = entries.pop(path)
        contents["name"] = name

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "a file that is on no list": (lambda _, entries: entries.update({"rin/x.png": b""}), "not those of its list"),
    "a file that is missing": (lambda contents, entries: entries.pop("rin/01.png"), "not those of its list"),
    "no list": (lambda contents, entries: contents.clear(), "list of files is damaged"),
    "another kind": (lambda contents, entries: contents.update(kind="model"), "list of files is damaged"),
    "a wrong checksum": (lambda contents, entries: contents["sha256"].update({"01.png": "0"}), "01.png is damaged"),
    "a path that climbs": (put("../../evil.png", b"x"), "does not belong in it"),
    "an absolute path": (put("/tmp/evil.png", b"x"), "does not belong in it"),
    "a drive": (put("C:\\evil.png", b"x"), "does not belong in it"),
    "a device": (put("con.png", b"x"), "does not belong in it"),
    "a hidden file": (put(".cache/x.safetensors", b"x"), "does not belong in it"),
    "a program": (put("run.py", b"import os"), "does not belong in it"),
    "a page": (put("x.html", b"<script>"), "does not belong in it"),
    "the same name twice": (put("01.PNG", b"x"), "a file is in it twice"),
    "no picture": (put("x.png", b"<svg onload='x'>"), "x.png is damaged"),
    "a huge caption": (put("01.txt", b"x" * (2**20 + 1)), "01.txt is too large"),
    "a bomb": (put("x.txt", bytes(300 * 2**20)), "too large when unpacked"),
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_hostile_project_is_refused(character: Path, home: Path, harm: str) -> None:
    change, words = HOSTILE[harm]
    backup.write_project("rin", home / "rin.zip")
    before = files(home / "datasets")
    (home / "x.zip").write_bytes(changed(home / "rin.zip", change, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=words) as refused:
        backup.restore_here(home / "x.zip", lambda name: None)
    assert str(home) not in str(refused.value)
    assert (files(home / "datasets"), [path.name for path in (home / "datasets").iterdir()]) == (before, ["rin"])
    assert not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "con", "", ".cache", "a/b"])
def test_the_name_of_a_backup_is_no_path(character: Path, home: Path, name: str) -> None:
    backup.write_project("rin", home / "rin.zip")
    (home / "x.zip").write_bytes(changed(home / "rin.zip", set_name(name)))
    restored = backup.restore_here(home / "x.zip", lambda name: None)
    assert paths.is_name(restored.name)
    assert files(home / "datasets" / restored.name) == files(character)
    assert {path.name for path in home.iterdir()} == {"datasets", "outputs", "rin.zip", "x.zip"}


@pytest.fixture
def stored(character: Path, tiny_sd: Path, workers: Workers, home: Path) -> Path:
    run = make(str(tiny_sd), steps=2, resolution=64)
    assert workers.work(run) == 0
    backup.write_run(run, home / "run.zip")
    shutil.rmtree(run.folder)
    return home / "run.zip"


def logged(field: str, value: str) -> Change:
    """A change of one field of all events that have it."""

    def change(contents: dict[str, Any], entries: Files) -> None:
        lines = [json.loads(line) for line in entries[f"{contents['name']}/events.jsonl"].splitlines()]
        lines = [line | {field: value} if field in line else line for line in lines]
        put("events.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))(contents, entries)

    return change


HOSTILE_RUNS: dict[str, tuple[Change, str]] = {
    "settings that are none": (put("config.toml", b"name = 1"), "config.toml is damaged"),
    "a name of the adapter that climbs": (put("config.toml", b'name = "../x"\ndataset = "rin"\n'), "config.toml"),
    "a pickle for an adapter": (put("rin.safetensors", b"\x80\x04x"), "rin.safetensors is damaged"),
    "a checkpoint that is none": (put("checkpoints/000002/manifest.json", b"{}"), "the checkpoint of step 2"),
    "a log that leads elsewhere": (logged("export", "../x.safetensors"), "its log names other files"),
    "previews elsewhere": (logged("file", "../../.page.json"), "its log names other files"),
    "a lock": (put("worker.lock", b""), "does not belong in it"),
    "a request": (put("ask/stop", b""), "does not belong in it"),
}


@pytest.mark.slow
def test_hostile_runs_are_refused_and_the_whole_one_is_not(stored: Path, home: Path) -> None:
    for what, (change, words) in HOSTILE_RUNS.items():
        (home / "x.zip").write_bytes(changed(stored, change))
        with pytest.raises(UserError, match=words):
            backup.restore_here(home / "x.zip", lambda name: None)
        assert not [path.name for path in (home / "outputs").iterdir() if path.suffix != ".lock"], what
    restored = backup.restore_here(stored, lambda name: None)
    assert runs.look(Run(home / "outputs" / restored.name)).status == "finished"
