"""Fields and captions that are sent as the page is left are stored under their project, whatever else is sent."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.conftest import small_disk
from trainer import storage
from trainer.data.captions import read_caption
from ui.server import typed_route
from ui.state import page_memory


def send(data: object) -> int:
    app = FastAPI()
    app.include_router(typed_route.router)
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return TestClient(app).post("/typed", content=content).status_code


def test_fields_and_captions_are_stored_under_their_project(character: Path) -> None:
    caption = read_caption(character / "01.png")
    typed, bases = {"trigger": "a\nb", "class": "fox"}, {"01.png": caption, "02.png": "what it was long ago"}
    fields = [{"project": "rin", "name": name, "value": value} for name, value in typed.items()]
    captions = [{"project": "rin", "name": name, "text": "red", "base": base} for name, base in bases.items()]
    before = read_caption(character / "02.png")
    assert send({"fields": fields, "captions": captions}) == 200
    assert (page_memory.answer("rin", "trigger"), page_memory.answer("rin", "class")) == ("a b", "fox")
    assert read_caption(character / "01.png") == "red"
    assert read_caption(character / "02.png") == before, "another page changed it; the browser asks which one to keep"


def test_removals_of_a_page_that_was_left_are_done(character: Path) -> None:
    names = ["01.png", "gone.png", "../rin/02.png", 7]
    removals = [{"project": "rin", "names": names}, {"project": "../rin", "names": ["02.png"]}, {"project": "rin"}]
    assert send({"removals": [*removals, None]}) == 200
    assert [(character / name).exists() for name in ("01.png", "01.txt", "02.png")] == [False, False, True]


def test_a_full_disk_is_said_and_what_was_typed_may_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = {"project": "rin", "name": "trigger", "value": "miraxo"}
    with small_disk(tmp_path / "small", "1m") as disk:
        monkeypatch.setenv("LIMNER_HOME", str(disk))
        for folder in ("datasets/rin", "outputs"):
            (disk / folder).mkdir(parents=True)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(storage.free_space(disk)))
        assert send({"fields": [field]}) == 507
        ballast.unlink()
        assert send({"fields": [field]}) == 200
        assert page_memory.answer("rin", "trigger") == "miraxo"


@pytest.mark.parametrize("data", [b"\xff", b"[[[", b"[" * 9000, [], 7, {"fields": 3}, {"captions": {"a": 1}.__len__()}])
def test_what_makes_no_sense_is_refused(home: Path, data: object) -> None:
    assert send(data) == 400
    assert not (home / "outputs" / ".page.json").exists()


KEPT = {"project": "rin", "name": "form-training-steps", "value": "7"}
NOT_TYPED: list[object] = [
    *(None, [], {}, {"project": "rin"}),
    *({"project": project, "name": "trigger", "value": "x"} for project in ("other", "../rin", "", None)),
    *(
        {"project": "rin", "name": name, "value": value}
        for name, value in (
            ("settings", "{}"),
            ("form-gone", "1"),
            ("preset", "odd"),
            ("name", ["x"]),
            ("base", "x" * 20_001),
            ("name", "../../x"),
            ("form-training-steps", "nan"),
            ("form-optimizer-kind", {}),
        )
    ),
]


@pytest.mark.parametrize("field", NOT_TYPED)
def test_only_fields_of_projects_are_stored(character: Path, home: Path, field: object) -> None:
    assert send({"fields": [field, KEPT]}) == 200
    known = json.loads((home / "outputs" / ".page.json").read_text())["answers"]
    assert {project: set(answers) for project, answers in known.items()} == {"rin": {"settings"}}
    assert page_memory.settings("rin") == {"training": {"steps": 7}}, "what is good is stored beside what is refused"


def test_a_value_that_arrives_late_replaces_no_later_one(character: Path) -> None:
    def type_in(value: str, number: int, page: str = "a") -> None:
        field = {"project": "rin", "name": "trigger", "value": value, "page": page, "number": number}
        assert send({"fields": [field]}) == 200

    type_in("third", 3)
    type_in("second", 2)
    assert page_memory.answer("rin", "trigger") == "third"
    type_in("again", 3)
    assert page_memory.answer("rin", "trigger") == "again", "what was sent twice is no older"
    type_in("of another page", 1, "b")
    assert page_memory.answer("rin", "trigger") == "of another page"
