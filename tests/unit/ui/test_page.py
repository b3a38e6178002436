"""The page without a browser: what its handlers do to the folders and what they say; no model library is loaded."""

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.queueing
import pytest
from filelock import FileLock
from PIL import Image

from tests.conftest import STYLE
from tests.unit.ui.answers import answers, form_values
from trainer import paths
from trainer.data import dataset, undo
from trainer.data.captions import read_captions
from trainer.errors import UserError
from trainer.runs import Run, events
from ui import api, head, page
from ui.server import media
from ui.state import page_memory, projects, run_settings
from ui.state.answers import Answers
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import download, image_grid, image_tools, images, run_view, settings, train
from ui.tabs.image_grid import Selection
from ui.widgets import handlers


def in_loop(make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it makes
    """Call something inside an event loop: outside of one, Gradio makes its own and never closes it."""

    async def making() -> object:
        made = make()
        return await made if inspect.isawaitable(made) else made

    with ThreadPoolExecutor(1) as other_thread:  # in this one a browser test may have left a loop running
        return other_thread.submit(lambda: asyncio.run(making())).result()


def test_the_page_has_private_handlers_ids_and_few_messages(home: Path) -> None:
    """The browser looks each output of each listener up among all components: few of both let a page open soon."""
    blocks = in_loop(lambda: page.build(SamplerClient(), RunWatcher()))
    config_file = blocks.get_config_file()
    calls = config_file["dependencies"]
    public_calls = [call for call in calls if call["api_visibility"] != "private"]
    public = {call["api_name"] for call in public_calls}
    assert {"start_training", "status", "make_picture"} <= public
    assert len([name for name in public if hasattr(api, name) or name in api.build.__code__.co_varnames]) > 10
    ids = [name for component in config_file["components"] if (name := component["props"].get("elem_id"))]
    assert {entry.id for entry in train.ENTRIES} <= set(ids)
    assert len(ids) == len(set(ids))
    numbers = [component["props"] for component in config_file["components"] if component["type"] == "number"]
    rules = {(props.get("minimum"), props.get("precision")) for props in numbers}
    assert rules == {(None, None)}, "bounds and whole numbers are checked in words, and nothing is rounded unseen"
    assert sum(len(call["targets"]) for call in calls) < 200
    after = [call for call in calls if call["trigger_after"] is not None]
    ends = [call["trigger_only_on_success"] or call["trigger_only_on_failure"] for call in after]
    assert all(ends), "Gradio's `then` is silent after a failure"
    opening = next(call for call in calls if "load" in {kind for _, kind in call["targets"]})
    assert len(opening["outputs"]) < 100
    source = inspect.getsource(gradio.queueing)  # which may have other names one day
    for name in ("sleep_when_free", "progress_update_sleep_when_free"):
        assert f"self.{name}" in source
    sleeps = (blocks._queue.sleep_when_free, blocks._queue.progress_update_sleep_when_free)
    assert sleeps == (page.QUEUE_LOOKED_EVERY, page.PROGRESS_SENT_EVERY), "an idle server leaves the processor alone"
    names = {number: block.elem_id for number, block in blocks.blocks.items()}
    question = next(block for block in blocks.blocks.values() if block.elem_id == "preset")
    assert [key for _label, key in question.choices] == ["character", "style"]
    assert "/logout" not in str(config_file)
    queued = [call["targets"] for call in calls if call["queue"] and call["backend_fn"] and call not in public_calls]
    events = [{(names[number], event) for number, event in targets} for targets in queued]
    assert [("prompt", "submit") in each for each in events] == [True], "answers can get lost in the queue"
    listing = next(number for number, name in names.items() if name == "runs")
    acts = [call for call in calls if {(listing, "delete"), (listing, "select")} & {*map(tuple, call["targets"])}]
    assert [call["outputs"] for call in acts] == [[], []], "a late answer would list what was searched for then"


def test_plain_lora_is_no_question_but_opens_as_settings(character: Path) -> None:
    """A run, saved settings and a project of an earlier version train the same, shown as a character's settings."""
    run = train.create(answers(preset="plain"))
    assert (run.config().preset, run.config().preservation.share) == ("plain", 0)
    assert run_settings.described(run) == ""
    opened = train.show("rin")
    run_settings.save("old", {"preset": "plain", "base": "micro", "settings": {}})
    loaded = settings.load_settings(answers(), "old")
    used = settings.use_run(answers(), SimpleNamespace(run=run.id))
    assert [made["preset"] for made in (opened, loaded, used)] == ["character"] * 3
    for filled in (settings.show_filled(opened["opening"]), loaded, used):
        assert filled["widgets"]["form-preservation-share"] == 0


def test_projects_have_titles_and_come_back_from_the_bin(character: Path) -> None:
    assert projects.create("Tante Käthe & co") == "Tante-Käthe-co"
    assert dataset.names() == ["Tante-Käthe-co", "rin"]
    assert projects.choices() == [("rin", "rin"), ("Tante Käthe & co", "Tante-Käthe-co")]
    for title, words in (("tante käthe & CO", "already"), (" ", "no name"), ("RIN", "already")):
        with pytest.raises(UserError, match=words):
            projects.create(title)
    projects.rename("rin", "Rin, the fox")
    projects.rename("rin", "Rin, the fox")  # its own title is no conflict
    assert projects.title("rin") == "Rin, the fox"
    with pytest.raises(UserError, match="already"):
        projects.rename("Tante-Käthe-co", "rin, the FOX")
    assert [box.value for box in (head.choices("rin"), head.choices(""))] == ["rin", None]

    captions = [path.read_text() for path in sorted((paths.datasets() / "rin").glob("*.txt"))]
    projects.delete("rin")
    assert dataset.names() == ["Tante-Käthe-co"]
    with pytest.raises(UserError, match="no longer exists"):
        projects.delete("rin")
    dataset.create("rin")
    with pytest.raises(UserError, match="already"):
        projects.restore_last()
    (paths.datasets() / "rin").rmdir()
    page_memory.remember("rin", "trigger", "miraxo")
    assert projects.create("Rin, the fox") == "Rin-the-fox"
    with pytest.raises(UserError, match="already a project 'Rin, the fox'"):
        projects.restore_last()
    projects.rename("Rin-the-fox", "rin")
    assert projects.create("Rin!") == "Rin-2", "with no answers and runs of the deleted one, and it can come back"
    assert projects.restore_last() == "rin"
    assert [path.read_text() for path in sorted((paths.datasets() / "rin").glob("*.txt"))] == captions
    with pytest.raises(UserError, match="no deleted project"):
        projects.restore_last()


def test_a_project_is_not_deleted_while_a_run_trains_on_it(character: Path) -> None:
    run = train.create(answers())
    dataset.create("girls")
    run.save_config(run.config().model_copy(update={"subjects": ("kim --trigger kmx2 --regularization girls",)}))
    with FileLock(run.lock):
        run.report(events.Began(pid=os.getpid()))
        for project in ("rin", "girls"):
            with pytest.raises(UserError, match="training on this project"):
                projects.delete(project)
    assert dataset.names() == ["girls", "rin"]


def test_the_settings_of_a_run_are_said_and_used_again(character: Path) -> None:
    own = {"form-training-exposures": 99, "form-optimizer-kind": "lion"}
    for steps, text in ((160, ""), (24, "Steps 24")):  # 160 is what the preset's exposures come to with 14 images
        assert run_settings.described(train.create(answers(**{"form-training-steps": steps}))) == text
    run = train.create(answers(preset="style", **own))
    assert run_settings.described(run) == "Optimizer lion, Exposures 99"
    used = settings.use_run(answers(), gr.EventData(None, {"run": run.id}))
    assert (used["preset"], used["base"]) == ("style", "micro")
    assert used["filled"]["own"] == own
    again = Answers.from_form(form_values(preset="style") | {"filled": used["filled"], **used["widgets"]})
    assert train.create(again).config() == run.config()
    drawn = download.table(RunWatcher(), "", "rin")
    assert f'class="again" data-run="{run.id}"' in drawn
    assert '<p class="quiet">micro · 0 steps' in drawn
    assert ">Optimizer lion, Exposures 99<" in drawn
    assert "No adapters yet" in download.table(RunWatcher(), "", "other")


def test_runs_of_the_project_and_all_that_train_are_listed(character: Path, finished: Run) -> None:
    projects.create("other")
    watch = RunWatcher()
    assert (watch.runs_of("rin"), watch.runs_of("other"), watch.default("other")) == ([finished], [], "")
    empty = run_view.draw(watch, "", project="other")
    assert empty["picker"].choices == []
    seen = {"stamp": empty["panel"]["stamp"], "runs": []}
    assert run_view.tick(watch, "", seen, project="other") == {}
    shutil.copy(character / "01.png", projects.folder("other"))
    filled = run_view.tick(watch, "", seen, project="other")
    assert 'src="/media/dataset/other/01.png"' in filled["panel"]["parts"]["previews"], "what will be trained"
    training = [train.create(answers()) for _number in range(2)]
    with ExitStack() as locks:
        for run in training:
            run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
            locks.enter_context(FileLock(run.lock))
        drawn = run_view.draw(RunWatcher(), "", project="other")
    assert {run for _label, run in drawn["picker"].choices} == {run.id for run in training}
    assert 'src="/media/dataset/rin/' in drawn["panel"]["parts"]["previews"], "until there are previews"
    assert "1 more run<" in drawn["panel"]["parts"]["dock"]


def test_logs_of_runs_that_are_over_are_not_read(
    character: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands of them after a start of the server."""

    def read(log: Path, offset: int) -> None:
        raise AssertionError(f"{log} is read from {offset} on")

    monkeypatch.setattr(events, "read", read)
    watch = RunWatcher()
    assert (watch.default("rin"), watch.active(), watch.default("other")) == (finished.id, None, "")
    assert watch.runs_and_active("rin") == ([finished], [])
    with pytest.raises(AssertionError, match="read from 0 on"):
        watch.views()


def test_errors_get_an_id_and_late_ones_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def stream(error: Exception) -> Iterator[int]:
        yield 1
        raise error

    answer = handlers.answered(lambda _: list(stream(RuntimeError("/secret/path"))))({})
    assert answer["ok"] is False
    assert "/secret" not in answer["error"]
    assert "/secret/path" in caplog.text
    steps = handlers.handled(stream)(UserError("Late.", ""))
    assert next(steps) == 1
    with pytest.raises(gr.Error, match="Late"):
        next(steps)


def drawn(project: str, **selection: object) -> dict[str, Any]:
    chosen = Selection.read({key: value for key, value in selection.items() if value is not None})
    grid: dict[str, Any] = image_grid.draw(project, "miraxo", chosen)["grid"]
    return grid


def test_the_grid_in_other_orders_narrowed_and_paged(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (character / "05.txt").unlink()
    dataset.write_caption(character / "07.png", "miraxo, a very rare tag")
    os.utime(character / "03.png", (2e9, 2e9))
    for order, first in (("problems", "05.png"), ("added", "03.png"), ("name", "01.png")):
        grid = drawn("rin", order=order)
        assert (grid["selection"]["order"], grid["items"][0]["name"]) == (order, first)
    assert (grid["items"][0]["badges"], grid["items"][0]["tokens"], grid["left"]) == ([], "13 / 38", 14)
    assert images.measure({"project": "rin"}) == {"ok": True, "left": 0}
    assert [item["name"] for item in drawn("rin", tag="a very rare tag")["items"]] == ["07.png"]
    grid = drawn("rin", kind="no caption")
    assert [item["name"] for item in grid["items"]] == ["05.png"]
    assert grid["only"] == "Only 1 image with this problem: no caption"
    assert len(drawn("rin", order="none", page="x", kind=None)["items"]) == 14, "nonsense is as if nothing was chosen"
    monkeypatch.setattr(image_grid, "PAGE", 5)
    value = drawn("rin", page=99)
    assert [item["name"] for item in value["items"]] == ["11.png", "12.png", "13.png", "14.png"]
    assert [page["label"] for page in value["pages"]] == ["1 to 5", "6 to 10", "11 to 14"]
    assert (value["asked"]["page"], value["selection"]["page"]) == (99, 3)


def test_buckets_are_counted_at_the_resolution(home: Path) -> None:
    folder = dataset.create("rin")
    for name, size in {"a": (300, 300), "b": (300, 300), "c": (600, 300)}.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    sizes = image_grid.overview(image_grid.read("rin"))["sizes"]
    assert sizes == [{"label": "128 x 128", "count": 2}, {"label": "192 x 64", "count": 1}]
    page_memory.remember("rin", "settings", '{"training": {"resolution": 256}}')
    project = image_grid.read("rin")
    assert image_grid.overview(project)["sizes"][0] == {"label": "256 x 256", "count": 2}
    facts = [item["facts"] for item in image_grid.cards(project, Selection())["items"]]
    assert facts[0] == "300 x 300 pixels · trained at 256 x 256"
    page_memory.remember("rin", "settings", "[]")
    assert image_grid.read("rin").resolution == 128
    dataset.create("none")
    assert image_grid.overview(image_grid.read("none"))["sizes"] == []


def test_a_caption_is_saved_or_refused_in_words(character: Path) -> None:
    def save(name: str, **values: str) -> dict[str, Any]:
        return images.save_caption({"project": "rin", "name": name, **values})

    read_at = image_grid.read("rin").read_at
    answer = save("01.png", text="miraxo,  happy")
    assert answer.pop("at") > read_at, "what was read before is older than what was written"
    assert answer == {"ok": True, "caption": "miraxo, happy", "badges": [], "tokens": "7 / 38", "long": ""}
    answer = save("01.png", text="sad", base="as another page read it")
    assert (answer["conflict"], (character / "01.txt").read_text()) == ("miraxo, happy", "miraxo, happy\n")
    for name in ("../01.png", "no.png", "01.txt", "/etc/passwd"):
        assert "no longer" in save(name, text="x")["gone"], "it is not sent again"
    assert "no longer" in save("01.png", project="gone", text="x")["gone"]
    assert not images.save_caption({})["ok"]


def test_each_line_of_a_caption_stays_a_line(character: Path) -> None:
    """As each may be trained as a caption of its own."""
    (character / "01.txt").write_text("miraxo, happy\n\nmiraxo smiles\n", encoding="utf-8")
    before = image_grid.cards(image_grid.read("rin"), Selection())["items"][0]["caption"]
    assert before == "miraxo, happy\nmiraxo smiles"
    draft = {"project": "rin", "name": "01.png", "text": before + " today\n", "base": before}
    assert images.save_caption(draft)["caption"] == "miraxo, happy\nmiraxo smiles today"
    assert read_captions(character / "01.png") == ("miraxo, happy", "miraxo smiles today")


def test_the_selected_images_are_changed_at_once(character: Path) -> None:
    names, files = ["02.png", "05.png", "gone.png"], [character / f"{name}.txt" for name in ("02", "05", "04")]
    assert image_tools.change_selected("rin", names, "add", " outdoors ") == "Changed 2 captions: add 'outdoors'."
    assert ["outdoors" in file.read_text() for file in files] == [True, True, False]
    assert image_tools.change_selected("rin", names, "replace", "outdoors", "night").startswith("Changed 2 captions")
    assert [file.read_text().endswith(", night\n") for file in files] == [True, True, False]
    assert image_tools.change_selected("rin", names, "rotate") == "Rotated 2 images."
    assert undo.last_title(character) == "rotate 2 images"
    for chosen, words in ((names, "no tag yet"), (["gone.png"], "No image is selected")):
        with pytest.raises(UserError, match=words):
            image_tools.change_selected("rin", chosen, "add", " ")


def test_the_trigger_is_guessed_from_what_all_captions_share() -> None:
    nine = range(9)
    for captions, trigger in (
        (["miraxo, red", "miraxo, blue"], "miraxo"),
        (["a, b", "b, a"], ""),
        (["a, b", "a, b"], "a"),
        ([*(f"miraxo, {number}" for number in nine), "edited by hand"], "miraxo"),
        ([f"a person, {number}" for number in nine], ""),  # a class is not a trigger
        ([f"1girl, {number}" for number in nine], ""),
        (["one"], ""),
        ([], ""),
        ([path.read_text().strip() for path in STYLE.glob("*.txt")], "pxlo style"),
    ):
        assert page_memory.guess_trigger(captions) == trigger, captions


def test_answers_are_remembered_and_a_damaged_memory_is_no_harm(character: Path, home: Path) -> None:
    assert page_memory.project() == "rin"
    for answer in ("trigger", "name"):
        page_memory.remember("rin", answer, "x")
    page_memory.remember_of_page(project="rin")
    assert (page_memory.answer("rin", "trigger"), page_memory.answer("rin", "name")) == ("x", "x")
    for damaged in ("{", "[]", '"x"', '{"answers": 1}', '{"project": [1]}'):
        (home / "outputs" / ".page.json").write_text(damaged)
        assert page_memory.answer("rin", "trigger") == "miraxo"
    assert page_memory.project() == "rin"
    page_memory.remember("rin", "name", "y")
    assert page_memory.answer("rin", "name") == "y"
    assert page_memory.answer("my-style", "preset") == "style"
    assert page_memory.answer("plain", "preset") == "character", "who compares says so"


def test_the_table_links_to_the_files_that_are_there(finished: Run) -> None:
    drawn = download.table(RunWatcher())
    for link in ("download/{}/rin.safetensors", "backup/run/{}", "download/{}/checkpoint/5"):
        assert f'href="/{link.format(finished.id)}"' in drawn
    assert 'checkpoint/2"' not in drawn
    assert download.table(RunWatcher(), "MIRAXO done") == drawn
    assert "tractor &lt;b&gt;" in download.table(RunWatcher(), "tractor <b>")
    finished.config_file.write_text("broken")
    assert "rin.safetensors" in download.table(RunWatcher())
    assert 'filename="rin-000005.safetensors"' in media.checkpoint(finished.id, 5).headers["content-disposition"]
