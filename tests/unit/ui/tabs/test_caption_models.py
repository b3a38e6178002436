"""Captions by a model in the page: chosen, described, downloaded, started, told, reviewed and refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_captioners import make_tagger
from trainer import captioning
from trainer.captioning import CaptionConfig, kinds
from trainer.errors import UserError
from trainer.runs import Run, events
from ui.state import page_memory
from ui.tabs import caption_models
from ui.tabs.image_grid import Selection

VALUES = {
    "prompt": "What?",
    "florence_task": "caption",
    "threshold": 0.5,
    "character_threshold": 0.7,
    "categories": ["general"],
    "blacklist": "text",
    "tokens": 30,
}


def chosen(model: str, *, review: bool = False, server: str = "", server_model: str = "") -> CaptionConfig:
    about = {"model": model, "existing": "keep", "review": review, "server": server, "server_model": server_model}
    return caption_models.read_settings("rin", about | VALUES)


def visible_for(model: str) -> tuple[str, list[str]]:
    """Return what is said about a model, and which of the other components are shown for it."""
    described = caption_models.describe(model)
    named: dict[str, Any] = {name: described[name].visible for name in ("download", "cancel", "server")}
    assert described["server_model"].visible == described["server"].visible
    named |= {name: update["visible"] for name, update in described["options"].items()}
    return described["about"], [name for name, visible in named.items() if visible]


def test_captions_are_started_told_and_refused(character: Path) -> None:
    started: list[Run] = []
    with pytest.raises(UserError, match="No caption model"):
        chosen(" ")
    with pytest.raises(UserError, match="already has a caption"):
        caption_models.start("rin", chosen("some/model"), started.append)
    (character / "03.txt").unlink()
    caption_models.start("rin", chosen(" some/model "), started.append)
    (run,) = started
    assert caption_models.show("rin")["model"].value == "some/model"
    assert not caption_models.is_writing("rin")
    assert "interrupted" in caption_models.draw("rin")["writing"]
    (run.folder / "ask" / "start").touch()
    assert caption_models.is_writing("rin")
    with pytest.raises(UserError, match="already being written"):
        caption_models.start("rin", chosen("some/model"), started.append)
    run.report(events.Phase(name="Writing captions", done=1, total=4))
    live = caption_models.stop("rin")
    assert "Writing captions (1 of 4)" in live["writing"]
    assert 'aria-valuenow="25"' in live["writing"]
    assert (live["write"].visible, live["stop"].visible, live["timer"].active) == (False, True, True)
    assert (run.folder / "ask" / "stop").exists()
    assert "grid" not in caption_models.poll("rin", "", Selection())
    (run.folder / "ask" / "start").unlink()
    run.report(events.Failed(message="No <model>.", remedy="Get one.", traceback=""))
    assert "<b>No &lt;model&gt;.</b> Get one." in caption_models.draw("rin")["writing"]
    assert caption_models.poll("rin", "", Selection())["grid"]["items"]


def test_each_model_shows_what_it_understands(home: Path) -> None:
    assert "server" in [value for _label, value in caption_models._choices()]
    (home / "config.json").write_text('{"architectures": ["<Bert>"]}', encoding="utf-8")
    tagger = make_tagger(home / "tagger")
    of_wd14 = ["download", "threshold", "character_threshold", "categories", "blacklist"]
    for model, words, components in (
        ("", "", []),
        ("server", "", ["server", "prompt", "tokens"]),
        (f'"{tagger}"', "", ["threshold", "blacklist"]),
        ("SmilingWolf/wd-vit-tagger-v3", "0.4 GB from the Hugging Face Hub, license Apache-2.0", of_wd14),
        ("florence-community/Florence-2-large-ft", "", ["download", "florence_task", "tokens"]),
        ("some/model", "some/model is not on this machine.", ["download"]),
        ("no <folder>", '<p role="status" class="quiet">There is no such folder on this machine.</p>', []),
        (str(home), "of the architecture &lt;Bert&gt;", []),
    ):
        text, visible = visible_for(model)
        assert (visible, words in text) == (components, True), model
    every = [kind.options for kind in vars(kinds).values() if isinstance(kind, kinds.Kind)]
    assert set(caption_models.OPTIONS) == {name for options in every for name in options}


def test_only_the_options_of_the_model_are_used(character: Path, tmp_path: Path) -> None:
    settings = chosen(str(make_tagger(tmp_path / "tagger")), review=True)
    assert (settings.threshold, settings.blacklist, settings.result) == (0.5, "text", "review")
    assert (settings.prompt, settings.tokens, settings.categories) == (captioning.PROMPT, 0, ("general", "character"))
    empty = dict.fromkeys(("server", "server_model", *caption_models.OPTIONS))
    about = {"model": str(tmp_path / "tagger"), "existing": "keep", "review": False}
    tagger = caption_models.read_settings("rin", empty | about)
    assert (tagger.blacklist, tagger.threshold) == ("", 0.35), "a field that was left empty has its default"
    settings = chosen("server", server="http://127.0.0.1:1/v1")
    assert (settings.server, settings.model, settings.prompt) == ("http://127.0.0.1:1/v1", "default", "What?")
    with pytest.raises(UserError, match="address of the server is missing"):
        chosen("server")
    (character / "03.txt").unlink()
    caption_models.start("rin", chosen("server", server="http://127.0.0.1:1/v1", server_model="vlm"), lambda _run: None)
    assert page_memory.answer("rin", "caption-model") == "server"
    fields = caption_models.show("rin")
    assert [fields[name].value for name in ("server", "server_model")] == ["http://127.0.0.1:1/v1", "vlm"]
