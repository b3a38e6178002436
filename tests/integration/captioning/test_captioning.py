"""Captions by a model, as a run of their own: written, kept, stopped, refused; what a person wrote stays."""

import re
from pathlib import Path

import pytest
from filelock import FileLock

from tests import fake_caption_server
from tests.integration.runs.test_processes import wait_until
from tests.tiny_captioners import make_tagger
from trainer import captioning, runs
from trainer.captioning import CaptionConfig
from trainer.cli.commands import main
from trainer.data import dataset, proposals, undo
from trainer.errors import UserError
from trainer.runs import Run, cards, events
from trainer.worker import work
from ui.tabs import caption_models


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


@pytest.mark.slow
def test_a_model_writes_what_is_missing(half: Path, tagger: Path) -> None:
    """What the user wrote stays, also what was typed while the model was at work."""
    before = captions(half)
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))
    work(made)
    assert (runs.look(made).status, captions(half)) == ("finished", before[:2] + ["pink hair, glasses"] * 12)
    assert captioning.read_captions(made) == {example.name: example.caption for example in dataset.read(half)[2:]}
    assert captioning.newest("rin") == made
    assert captioning.newest("other") is None
    assert made not in runs.all_runs(), "a run that trains nothing is not among the adapters"
    assert undo.undo(half) == undo.Undone("automatic captions", 12, 0)
    assert captions(half) == before
    dataset.write_caption(half / "03.png", "typed meanwhile")
    settings = CaptionConfig(dataset="rin", model="x")
    assert captioning.apply(settings, {"03.png": "a girl", "04.png": "a girl", "gone.png": "a girl"}) == 1
    assert captions(half)[2:4] == ["typed meanwhile", "a girl"]


@pytest.mark.slow
def test_captions_that_are_there_are_added_to_once(character: Path, tagger: Path) -> None:
    before = captions(character)
    made = run(tagger, existing="add")
    work(made)
    assert captions(character) == [f"{caption}, pink hair, glasses" for caption in before]


@pytest.mark.slow
def test_captions_that_wait_for_a_training_say_so(half: Path, tagger: Path) -> None:
    """Those of a server need no device, and do not wait."""
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))
    with FileLock(cards.known()[0].lock):
        runs.start(made)
        wait_until(lambda: "Another run has the device" in caption_models.draw("rin")[0])
        runs.request(made, "stop")
        wait_until(lambda: runs.look(made).status == "stopped")
        with fake_caption_server.serving() as server:
            other = captioning.create(CaptionConfig(dataset="rin", model="some-vlm", server=server.url))
            runs.start(other)
            wait_until(lambda: runs.look(other).status == "finished")
    assert all(captions(half))
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


@pytest.mark.slow
def test_captions_may_be_proposed(half: Path, tagger: Path) -> None:
    before = captions(half)
    made = run(tagger, result="review")
    assert (runs.look(made).status, captions(half)) == ("finished", before)
    assert set(captioning.read_captions(made).values()) == {"pink hair, glasses"}
    assert len(proposals.read(half)) == proposals.keep(half) == 12
    assert captions(half) == before[:2] + ["pink hair, glasses"] * 12


@pytest.mark.slow
def test_nothing_to_write_or_no_model_is_refused(character: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already has a caption"):
        captioning.create(CaptionConfig(dataset="rin", model="x"))
    dataset.create("void")
    with pytest.raises(UserError, match="no images"):
        captioning.create(CaptionConfig(dataset="void", model="x"))
    (character / "01.txt").unlink()
    for model in ("/nowhere/at-all", "nobody/no-such-model", str(tmp_path)):
        state = runs.look(run(model)).state
        assert state.end == "failed"
        assert re.search("has no model that writes captions|not on this machine", state.message)
        assert "limner download" in state.remedy
        assert "nowhere/at" not in state.message


@pytest.mark.slow
def test_the_options_of_the_command_line(half: Path, tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = captions(half)
    options = ["--model", str(tagger), "--dry-run", "--blacklist", "glasses", "--threshold", "0.5"]
    assert main(["caption", "rin", *options]) == 0
    assert (capsys.readouterr().out.splitlines()[0], captions(half)) == ("03.png: pink hair", before)
    options = ["--server", "not an address", "--task", "caption", "--prompt", "What?", "--tokens", "9"]
    assert main(["caption", "rin", *options, "--category", "rating", "--character-threshold", "0.5"]) == 2
    assert "is not the address of a server" in capsys.readouterr().err
    settings = captioning.load(captioning.newest("rin"))
    assert (settings.task_token, settings.prompt, settings.tokens) == ("<CAPTION>", "What?", 9)
    assert (settings.categories, settings.character_threshold, settings.result) == (("rating",), 0.5, "save")
    assert main(["caption", "rin", "--task", "<OD>"]) == 2
