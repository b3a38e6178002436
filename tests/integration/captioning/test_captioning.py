"""Captions by a model, as a run of their own: written, kept, stopped, refused; what a person wrote stays."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests import fake_caption_server
from tests.conftest import CHECKOUT
from tests.tiny_captioners import WORDS, make_blip, make_tagger
from trainer import captioning, runs
from trainer.captioning import CaptionConfig
from trainer.cli.commands import main
from trainer.data import dataset, proposals, undo
from trainer.errors import UserError
from trainer.runs import Run, cards, events
from trainer.worker import work
from ui.tabs import caption_models

pytestmark = pytest.mark.slow


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
    assert "has no model that writes captions" in state.message or "not on this machine" in state.message
    assert "limner download" in state.remedy
    assert "nowhere/at" not in state.message
    assert captions(half) == before


def until(what: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(what())


def test_captions_by_a_server_do_not_wait_for_a_training(half: Path) -> None:
    with fake_caption_server.serving() as server, FileLock(cards.known()[0].lock):
        made = captioning.create(CaptionConfig(dataset="rin", model="some-vlm", server=server.url))
        runs.start(made)
        is_finished = until(lambda: runs.look(made).status == "finished")
        runs.request(made, "stop")  # or it would wait after this test
    assert is_finished
    assert all(captions(half))


def test_captions_by_a_model_that_wait_for_a_training_say_so(half: Path, tagger: Path) -> None:
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))
    with FileLock(cards.known()[0].lock):
        runs.start(made)
        assert until(lambda: runs.is_locked(made.lock))
        says_so = until(lambda: "Another run has the device" in caption_models.draw("rin")[0])
    assert says_so
    assert until(lambda: runs.look(made).status == "finished")
    assert "Another run" not in caption_models.draw("rin")[0]


def test_a_server_that_fails_midway_leaves_what_it_wrote(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_caption_server.serving() as server:
        made = captioning.create(CaptionConfig(dataset="rin", model="some-vlm", server=server.url))

        def fail_at_five(event: events.Event) -> None:
            if isinstance(event, events.Phase) and event.name == "Writing captions" and event.done == 5:
                server.status = 500

        work(Run(made.folder, fail_at_five))
        assert runs.look(made).state.message == "The caption server refused (500)."
        assert captions(half)[2:8] == ["caption 1", "caption 2", "caption 3", "caption 4", "caption 5", ""]
        server.status = 200
        work(made)
    assert runs.look(made).status == "finished"
    assert all(captions(half))
    assert len(server.asked) == 13, "what was written is not asked for again"


@pytest.mark.parametrize("result", ["review", "none"])
def test_captions_may_be_proposed_or_only_recorded(half: Path, tagger: Path, result: str) -> None:
    before = captions(half)
    made = run(tagger, result=result)
    assert runs.look(made).status == "finished"
    assert captions(half) == before
    assert set(captioning.read_captions(made).values()) == {"pink hair, glasses"}
    proposed = proposals.read(half)
    assert len(proposed) == (12 if result == "review" else 0)
    if proposed:
        assert proposals.keep(half) == 12
        assert captions(half) == before[:2] + ["pink hair, glasses"] * 12


def test_a_stopped_run_that_goes_on_adds_nothing_twice(character: Path, tagger: Path) -> None:
    before = captions(character)
    made = run(tagger, existing="add")
    work(made)
    assert captions(character) == [f"{caption}, pink hair, glasses" for caption in before]


def test_nothing_to_write_is_refused(character: Path) -> None:
    with pytest.raises(UserError, match="already has a caption"):
        captioning.create(CaptionConfig(dataset="rin", model="x"))
    dataset.create("void")
    with pytest.raises(UserError, match="no images"):
        captioning.create(CaptionConfig(dataset="void", model="x"))


def test_the_options_of_the_command_line(half: Path, tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = captions(half)
    assert (
        main(["caption", "rin", "--model", str(tagger), "--dry-run", "--blacklist", "glasses", "--threshold", "0.5"])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[0] == "03.png: pink hair"
    assert captions(half) == before
    options = ["--server", "not an address", "--task", "caption", "--prompt", "What?", "--tokens", "9"]
    assert main(["caption", "rin", *options, "--category", "rating", "--character-threshold", "0.5"]) == 2
    assert "is not the address of a server" in capsys.readouterr().err
    settings = captioning.load(captioning.newest("rin"))
    assert (settings.task_token, settings.prompt, settings.tokens) == ("<CAPTION>", "What?", 9)
    assert (settings.categories, settings.character_threshold, settings.result) == (("rating",), 0.5, "save")
    assert main(["caption", "rin", "--task", "<OD>"]) == 2


@pytest.mark.slow
def test_the_same_on_the_command_line(half: Path, tagger: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "caption", "rin", "--model", str(tagger)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "03.png: pink hair, glasses"
    folder = half.parent.parent / "outputs" / ".captions"
    assert json.loads((next(folder.iterdir()) / "captions.json").read_text())["03.png"] == "pink hair, glasses"
