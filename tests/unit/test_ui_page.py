"""The page without a browser: what its handlers do to the folders and what they say; no model library is loaded."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from tests.unit.tabs import given
from trainer import dataset, runs
from trainer.errors import UserError
from trainer.runs import Run
from ui import (
    adapters,
    api,
    datasets,
    downloads,
    handling,
    live,
    memory,
    page,
    training,
)
from ui.painter import Painter
from ui.watch import Watch


def test_the_page_loads_no_model_library() -> None:
    code = "import sys, ui.page; print([m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def in_loop(make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it makes
    """Call something inside an event loop: outside of one, Gradio makes its own and never closes it."""

    async def making() -> object:
        return make()

    with ThreadPoolExecutor(1) as other_thread:  # in this one a browser test may have left a loop running
        return other_thread.submit(lambda: asyncio.run(making())).result()


def test_the_page_is_drawn_with_private_handlers_and_an_id_for_each_field(home: Path) -> None:
    settings = in_loop(lambda: page.build(Painter(), Watch())).get_config_file()
    public = {one["api_name"] for one in settings["dependencies"] if one["api_visibility"] != "private"}
    assert {"start_training", "status", "make_picture"} <= public
    assert all(hasattr(api, name) or name in api.build.__code__.co_varnames for name in public)
    ids = [one["props"].get("elem_id") for one in settings["components"]]
    assert {entry.id for entry in training.ENTRIES} <= set(ids)
    named = [one for one in ids if one]
    assert len(named) == len(set(named))


def test_the_application_serves_the_page_and_ends_the_painter(character: Path) -> None:
    with TestClient(in_loop(page.make_app)) as client:
        assert "Limner" in client.get("/").text
        assert client.get("/media/dataset/rin/01.png").status_code == 200
        assert client.get("/openapi.json").status_code == 404


def test_opening_the_page_shows_what_is_there(character: Path, finished: Run) -> None:
    watch = Watch()
    shown = page._load(watch)
    assert shown[1].value == "rin"
    assert finished.id in str(shown[-12:])
    made = page._create("new-one")
    assert made[0].value == "new-one"
    assert dataset.names() == ["new-one", "rin"]
    assert memory.project() == "new-one"
    for name, words in (("new-one", "already"), (" ", "no name"), ("../x", "cannot be the name")):
        with pytest.raises(UserError, match=words):
            page._create(name)
    assert len(page._choose("rin")) == 1 + len(page._open("rin"))


def test_another_preset_or_base_retunes_the_form(character: Path) -> None:
    _, _, _, _, base, tuned, *values = given()
    after, *moved = training.retune("style", base, tuned, *values)
    assert after == ("style", "micro")
    assert training.plan("rin", "style", "x", "", "micro", after, *moved) != training.plan(*given())


def test_a_run_is_asked_and_resumed_through_the_page(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.create(*given())
    started = []
    monkeypatch.setattr(runs, "start", lambda run: (run.folder / "ask" / "start").touch() or started.append(run))
    live.go_on(run.id, Painter(), Watch())
    assert started == [run]
    assert Watch().active() is not None
    live.ask(run.id, "stop")
    assert "Stopping" in live.draw(Watch(), run.id)[0]


# Errors


def test_a_user_error_is_told_and_anything_else_gets_an_id_only(caplog: pytest.LogCaptureFixture) -> None:
    def refused() -> Never:
        raise UserError("No <pictures>.", "Add some.")

    def broken() -> Never:
        raise RuntimeError("/secret/path")

    def stream() -> Iterator[int]:
        yield 1
        raise UserError("Late.", "")

    with pytest.raises(gr.Error, match=r"No &lt;pictures&gt;\. Add some"):
        handling.handled(refused)()
    with pytest.raises(gr.Error, match=r"Something went wrong \(id [0-9a-f]{6}\)") as caught:
        handling.handled(broken)()
    assert "/secret" not in str(caught.value)
    assert "/secret/path" in caplog.text
    steps = handling.handled(stream)()
    assert next(steps) == 1
    with pytest.raises(gr.Error, match="Late"):
        next(steps)
    answer = handling.answered(lambda _: broken())({})
    assert answer["ok"] is False
    assert "/secret" not in answer["error"]


# Images


def test_the_grid_shows_every_picture_with_its_caption_and_problems(character: Path) -> None:
    (character / "01.txt").unlink()
    value = datasets.grid_value("rin", "miraxo", 1)
    assert len(value["items"]) == 14
    first = value["items"][0]
    assert first["badges"] == ["This picture has no caption."]
    assert first["url"].startswith("/media/dataset/rin/01.png?t=")
    assert not value["paged"]


def test_a_large_project_is_paged(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "PAGE", 5)
    value = datasets.grid_value("rin", "", 3)
    assert [item["name"] for item in value["items"]] == ["11.png", "12.png", "13.png", "14.png"]
    assert [page["label"] for page in value["pages"]] == ["1 to 5", "6 to 10", "11 to 14"]
    assert datasets.grid_value("rin", "", 99)["page"] == 3


def test_a_caption_is_saved_or_refused_in_words(character: Path) -> None:
    answer = datasets.save_caption({"project": "rin", "name": "01.png", "text": "miraxo,\nhappy"})
    assert answer == {"ok": True, "badges": []}
    assert (character / "01.txt").read_text() == "miraxo, happy\n"
    for name in ("../01.png", "no.png", "01.txt", "/etc/passwd"):
        answer = datasets.save_caption({"project": "rin", "name": name, "text": "x"})
        assert answer["ok"] is False
        assert "no longer" in answer["error"]
    assert datasets.save_caption({"project": "../rin", "name": "01.png", "text": "x"})["ok"] is False
    assert datasets.save_caption({})["ok"] is False


def test_bulk_changes_can_be_taken_back(character: Path) -> None:
    before = [dataset.read_caption(path) for path in dataset.pictures(character)]
    said = datasets.put_in_front("rin", "newword")[0]
    assert "14 captions" in said
    assert dataset.read_caption(character / "01.png").startswith("newword, miraxo")
    assert memory.answer("rin", "trigger") == "newword"
    assert "Every caption has" in datasets.put_in_front("rin", "newword")[0]
    datasets.replace_in_all("rin", "newword", "orange shirt", "green hat")
    assert "green hat" in dataset.read_caption(character / "01.png")
    datasets.undo_captions("rin", "")
    datasets.undo_captions("rin", "")
    assert [dataset.read_caption(path) for path in dataset.pictures(character)] == before
    with pytest.raises(UserError, match="trigger word"):
        datasets.put_in_front("rin", " ")
    with pytest.raises(UserError, match="nothing to find"):
        datasets.replace_in_all("rin", "", "", "x")


def test_a_removed_picture_comes_back(character: Path) -> None:
    datasets.remove("rin", "", SimpleNamespace(name="02.png", page=1))
    assert not (character / "02.png").exists()
    datasets.bring_back("rin", "")
    assert (character / "02.png").exists()
    with pytest.raises(UserError):
        datasets.remove("rin", "", SimpleNamespace(name="../../x.png", page=1))


def test_uploads_are_reported_in_one_sentence_and_their_copies_removed(character: Path, tmp_path: Path) -> None:
    fake = tmp_path / "text<b>.png"
    fake.write_text("no picture")
    said, cleared, *_ = datasets.add("rin", "", [str(fake)])
    assert "text&lt;b&gt;.png (not a picture)" in said
    assert cleared is None
    assert not fake.exists()
    with pytest.raises(UserError, match="no project"):
        datasets.add("", "", [])


def test_the_trigger_is_guessed_from_what_all_captions_share() -> None:
    assert memory.guess_trigger(["miraxo, red", "miraxo, blue"]) == "miraxo"
    assert memory.guess_trigger(["a, b", "a, b"]) == ""
    assert memory.guess_trigger([*(f"miraxo, {number}" for number in range(9)), "edited by hand"]) == "miraxo"
    assert memory.guess_trigger(["one"]) == ""
    assert memory.guess_trigger([]) == ""


def test_answers_are_remembered_and_a_damaged_memory_is_no_harm(character: Path, home: Path) -> None:
    assert memory.project() == "rin"
    memory.remember("rin", "trigger", "x")
    memory.remember("rin", "name", "y")
    memory.remember_project("rin")
    assert (memory.answer("rin", "trigger"), memory.answer("rin", "name")) == ("x", "y")
    (home / "outputs" / ".page.json").write_text("{")
    assert memory.answer("rin", "trigger") == "miraxo"
    assert memory.answer("my-style", "preset") == "style"


# Download


def test_the_table_links_to_the_files_that_are_there(finished: Run) -> None:
    drawn = downloads.table(Watch())
    assert f"href='/download/{finished.id}/rin.safetensors'" in drawn
    assert f"/download/{finished.id}/checkpoint/5" in drawn
    assert "checkpoint/2'" not in drawn
    assert "miraxo" in drawn
    assert downloads.table(Watch(), "MIRAXO done") == drawn
    assert "No run has" in downloads.table(Watch(), "tractor <b>")
    assert "<b>" not in downloads.table(Watch(), "tractor <b>")
    finished.config_file.write_text("broken")
    assert "rin.safetensors" in downloads.table(Watch())
    assert adapters.size(3 * 2**20) == "3.0 MB"
