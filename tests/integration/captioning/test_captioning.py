"""Captions by a model, as a run of their own: written, kept, stopped, refused; what a person wrote stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.tiny_captioners import WORDS, make_blip, make_tagger
from trainer import captioning, runs
from trainer.captioning import CaptionConfig
from trainer.data import dataset, undo
from trainer.errors import UserError
from trainer.runs import Run, events
from trainer.worker import work


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("captioners") / "blip")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("captioners") / "tagger")


@pytest.fixture
def half(character: Path) -> Path:
    """The example character of which only the first two pictures have a caption."""
    for path in sorted(character.glob("*.txt"))[2:]:
        path.unlink()
    return character


def captions(folder: Path) -> list[str]:
    return [example.caption for example in dataset.read(folder)]


def run(model: Path | str, **settings: object) -> Run:
    made = captioning.create(CaptionConfig(dataset="rin", model=str(model), **settings))
    work(made)
    return made


def test_a_model_writes_what_is_missing_and_leaves_what_a_person_wrote(half: Path, blip: Path) -> None:
    before = captions(half)
    made = run(blip)
    assert runs.look(made).status == "finished"
    after = captions(half)
    assert after[:2] == before[:2]
    assert all(after[2:])
    assert {word for caption in after[2:] for word in caption.split()} <= set(WORDS)
    assert captioning.read_captions(made) == {example.name: example.caption for example in dataset.read(half)[2:]}
    assert captioning.newest("rin") == made
    assert captioning.newest("other") is None
    assert made not in runs.all_runs(), "a run that trains nothing is not among the adapters"
    assert undo.undo(half) == undo.Undone("automatic captions", 12, 0)
    assert captions(half) == before


@pytest.mark.parametrize(
    ("existing", "expected"), [("add", "{before}, pink hair, glasses"), ("replace", "pink hair, glasses")]
)
def test_captions_that_are_there_are_changed_only_when_asked(
    character: Path, tagger: Path, existing: str, expected: str
) -> None:
    before = captions(character)
    run(tagger, existing=existing)
    assert captions(character) == [expected.format(before=caption) for caption in before]
    undo.undo(character)
    assert captions(character) == before


def test_a_caption_written_in_the_meantime_wins(half: Path) -> None:
    settings = CaptionConfig(dataset="rin", model="x")
    dataset.write_caption(half / "03.png", "typed while the model was at work")
    assert captioning.apply(settings, {"03.png": "a girl", "04.png": "a girl", "gone.png": "a girl"}) == 1
    assert captions(half)[2:4] == ["typed while the model was at work", "a girl"]


def test_a_stopped_run_keeps_what_it_has_and_goes_on_from_there(half: Path, tagger: Path) -> None:
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))

    def stop_at_five(event: events.Event) -> None:
        if isinstance(event, events.Phase) and event.name == "Writing captions" and event.done == 5:
            runs.request(made, "stop")

    work(Run(made.folder, stop_at_five))
    assert runs.look(made).status == "stopped"
    assert [bool(caption) for caption in captions(half)] == [True] * 7 + [False] * 7
    work(made)
    assert runs.look(made).status == "finished"
    assert all(captions(half))
    assert len(captioning.read_captions(made)) == 12


@pytest.mark.parametrize("model", ["/nowhere/at-all", "nobody/no-such-model", "EMPTY"])
def test_without_a_model_it_is_said_what_to_do(half: Path, tmp_path: Path, model: str) -> None:
    before = captions(half)
    made = run(str(tmp_path) if model == "EMPTY" else model)
    state = runs.look(made).state
    assert state.end == "failed"
    assert "cannot be used for captions" in state.message or "on this machine" in state.message
    assert captioning.SUGGESTED in state.remedy
    assert "nowhere/at" not in state.message
    assert captions(half) == before


def test_nothing_to_write_is_refused(character: Path) -> None:
    with pytest.raises(UserError, match="already has a caption"):
        captioning.create(CaptionConfig(dataset="rin", model="x"))
    dataset.create("void")
    with pytest.raises(UserError, match="no images"):
        captioning.create(CaptionConfig(dataset="void", model="x"))


def test_the_same_on_the_command_line(half: Path, tagger: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "caption", "rin", "--model", str(tagger)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "03.png: pink hair, glasses"
    folder = half.parent.parent / "outputs" / ".captions"
    assert json.loads((next(folder.iterdir()) / "captions.json").read_text())["03.png"] == "pink hair, glasses"
