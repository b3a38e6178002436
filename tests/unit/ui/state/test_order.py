"""What is done on a page counts in the order in which it was done there, also if its requests arrive in another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest

from trainer.data import caption_edits, image_edits, image_stats, undo
from trainer.data.captions import read_caption
from trainer.data.dataset import write_caption
from trainer.errors import UserError
from ui.state import order
from ui.state.order import Moment
from ui.tabs import image_grid, images
from ui.tabs.image_grid import Selection

TYPED = "typed after the click"


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_LATEST", {})


def type_in(base: str, number: int, page: str = "a") -> dict[str, object]:
    sent = {"project": "rin", "name": "01.png", "text": TYPED, "base": base, "page": page, "number": number}
    return images.save_caption(sent)


def event(**values: object) -> gr.EventData:
    return gr.EventData(None, values)


ACTS: dict[str, Callable[[Selection], object]] = {
    "trigger": lambda selection: images.add_trigger("rin", "zorblax", selection),
    "replace": lambda selection: images.replace_in_all("rin", "", selection, "t", "T"),
    "template": lambda selection: images.fill_in("rin", "zorblax", selection, "{trigger}, {caption}", ""),
    "tag": lambda selection: images.change_selected(
        "rin", "", selection, event(names=["01.png"], action="add", tag="night", other="")
    ),
    "finding": lambda selection: images.fix("rin", "zorblax", selection, event(kind="no trigger")),
    "proposal": lambda selection: images.decide("rin", "", selection, event(action="keep", name="01.png")),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_arrives_late_leaves_what_was_typed_since(character: Path, act: str) -> None:
    image = character / "01.png"
    write_caption(image, "a cat")
    before = read_caption(image)
    caption_edits.propose(character, [caption_edits.Edit(image.name, before, "a proposal")])
    ACTS[act](Selection(sent=Moment("a", 4)))
    assert read_caption(image) != before, "it changes captions"
    write_caption(image, "a cat")
    caption_edits.propose(character, [caption_edits.Edit(image.name, before, "a proposal")])
    assert type_in("a cat", 6)["ok"]
    ACTS[act](Selection(sent=Moment("a", 5)))
    assert read_caption(image) == TYPED
    ACTS[act](Selection(sent=Moment("another", 1)))
    assert read_caption(image) != TYPED, "of pages that know nothing of each other the last one counts"


@pytest.mark.parametrize("act", [*ACTS, "undo"])
def test_a_caption_typed_after_an_act_is_no_conflict_with_it(character: Path, act: str) -> None:
    image = character / "01.png"
    write_caption(image, "a dog")
    caption_edits.apply(character, [caption_edits.Edit(image.name, "a dog", "a cat")], "a change to undo")
    caption_edits.propose(character, [caption_edits.Edit(image.name, "a cat", "a proposal")])
    acts = {**ACTS, "undo": lambda selection: images.undo_captions("rin", "", selection, "Undo: a change to undo")}
    acts[act](Selection(sent=Moment("a", 5)))
    assert "conflict" in type_in("a cat", 6, page="b"), "this page has not seen it"
    assert "conflict" in type_in("a cat", 4), "typed before the act, which was to come after it"
    assert "conflict" not in type_in("a cat", 6)
    assert read_caption(image) == TYPED
    write_caption(image, "of another program")
    assert type_in("a cat", 7)["conflict"] == "of another program"


def test_only_what_the_button_named_is_undone(character: Path) -> None:
    """Another page may have changed something since, and the second click of two was meant for the first change."""
    image = character / "01.png"
    write_caption(image, "a dog")
    for text in ("a cat", "a fox"):
        change = caption_edits.Edit(image.name, read_caption(image), text)
        caption_edits.apply(character, [change], f"make it {text}")
    for _click in range(2):
        drawn = images.undo_captions("rin", "", Selection(), "Undo: make it a fox")
        assert (read_caption(image), drawn["undo"].value) == ("a cat", "Undo: make it a cat")


def test_nothing_counts_as_undone_of_an_image_that_was_replaced(character: Path) -> None:
    undo.edit_images(character, {"01.png": image_edits.Edit(turns=1)}, "rotate 01.png")
    shutil.copy(character / "02.png", character / "01.png")
    drawn = images.undo_captions("rin", "", Selection(), "Undo: rotate 01.png")
    assert "something was changed since" in drawn["report"]
    assert (character / "01.png").read_bytes() == (character / "02.png").read_bytes()


def test_no_more_is_remembered_than_pages_can_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "REMEMBERED", 2)
    for number, field in enumerate("abca", 1):
        assert order.edit(Moment("page", number), "rin", field)
    assert order.edited_later(Moment("page", 0), "rin") == {"c", "a"}
    assert order.edited_later(Moment("page", 3), "rin") == {"a"}
    assert order.edited_later(Moment("page", 0), "mira") == set()
    assert order.edit(order.UNKNOWN, "rin", "a")
    assert order.edited_later(order.UNKNOWN, "rin") == set()


def test_only_images_that_a_finding_named_are_removed(character: Path) -> None:
    """Those that were added after it was drawn were not seen."""
    for number in ("02", "03"):
        shutil.copy(character / "01.png", character / f"{number}.png")
    image_stats.measure_missing(character, 100)
    findings = {finding["kind"]: finding for finding in image_grid.overview(image_grid.read("rin"))["findings"]}
    assert findings["copy"]["remove"] == ["02.png", "03.png"]
    shutil.copy(character / "01.png", character / "04.png")
    image_stats.measure_missing(character, 100)
    images.fix("rin", "", Selection(), event(kind="copy", names=["02.png", "03.png"]))
    assert [(character / f"0{number}.png").exists() for number in (1, 2, 3, 4)] == [True, False, False, True]
    with pytest.raises(UserError, match="already been fixed"):
        images.fix("rin", "", Selection(), event(kind="copy", names=["02.png"]))
