"""The Train tab: the form, the plan, saved settings, base models, and the run view."""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from filelock import FileLock

from tests.unit.ui.answers import FORM, answers, form_values
from tests.unit.ui.widgets.test_run_html import STEP
from trainer import config, runs, storage
from trainer.data import dataset
from trainer.errors import UserError
from trainer.machine import pace
from trainer.runs import events
from ui.server import typed_route
from ui.state import base_model_choices, page_memory, run_actions, run_settings, warm_worker
from ui.state.answers import Answers
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import download, images, run_view, settings, train
from ui.tabs.image_grid import Selection
from ui.widgets import run_html, settings_form


def test_the_plan_says_what_a_start_would_do(character: Path) -> None:
    planned = train.plan(answers())
    summary, effort = planned["summary"], planned["effort"]
    assert (planned["notes"]["changed"], planned["notes"]["conflicts"]) == ({}, {})
    sentence = '<b>14 images, 160 steps on micro</b>: each image is seen about 91 times. <span class="costs">An'
    assert summary.startswith(sentence)
    assert "disk space" not in summary
    assert effort.value == "balanced"
    assert [words for words, _ in effort.choices] == ["Quick look", "Balanced", "Thorough"]
    assert "1 step on micro</b>: not every image is seen." in plan(**{"form-training-steps": 1})
    assert "2 steps on micro</b>: each image is seen about once." in plan(**{"form-training-steps": 2})
    assert "7 steps" in plan(**{"form-training-steps": 7})
    run_settings.merge("rin", {"form-training-steps": 7})
    assert "7 steps" in train.plan_images("rin")["summary"], "whatever the form has, which may still be being filled"
    run_settings.merge("rin", {"form-training-steps": 0})
    for speed, is_long in ((2e10, False), (2e7, True)):
        storage.write(pace._file(), f'{{"small": {speed}}}')
        summary = plan()
        assert ("On this processor the steps take" in summary, "rented-gpu.md" in summary) == (True, is_long)
    assert "Rank" in plan(**{"form-adapter-rank-lora": -1})
    dataset.create("empty")
    assert plan(project="") == plan(project="empty") == "Add images first."
    gone = replace(answers(), base="gone.safetensors")
    assert "does not exist" in train.plan(gone)["summary"]
    off = [planned["start"]["interactive"] for planned in map(train.plan, (gone, answers(project="empty"), answers()))]
    assert off == [False, False, True]
    shutil.copytree(character, character.with_name("kim"))
    summary = plan(**{"form-subjects": "kim --trigger kmx2 --repeats 3", "form-training-steps": 140})
    assert "By subject: miraxo 20 times, kmx2 60 times." in summary


def test_a_second_click_starts_again_what_has_ended(character: Path) -> None:
    latest, run = train.LatestStart(), train.create(answers())
    assert latest.same("miraxo") is None
    latest.note("miraxo", run)
    with FileLock(run.lock):
        assert latest.same("miraxo") == run
        assert latest.same("kim") is None
    assert latest.same("miraxo") is None, "what was clicked after its end came to nothing"


def test_the_plan_says_what_an_effort_takes(character: Path) -> None:
    run, begun = train.create(answers()), datetime(2026, 1, 1, tzinfo=UTC)
    run.report(events.Started(step=0, steps=160, pid=1, device="CPU"))
    for step in (1, 2, 3):
        time = begun + timedelta(seconds=step)
        run.report(events.Step(step=step, time=time, **STEP | {"loss": 1.0, "memory": 3 * 2**30}))
    length = train.exposures("quick", "character", "micro")
    assert length["steps"] == 0
    planned = train.plan(answers(**{"form-training-exposures": length["exposures"]}))
    summary, effort = planned["summary"], planned["effort"]
    assert "about 65 s here" in summary
    assert re.search(r"A similar run took 3\.0 GB of memory; \d+ GB are free\.", summary)
    assert effort.value == "quick"
    assert next(words for words, _ in effort.choices) == "Quick look\nabout 65 s"
    assert "A similar run" not in plan(**{"form-training-batch-size": 2})
    newer = runs.create(run.config(), run.folder.parent / "9999_newer")
    newer.config_file.write_text("broken")
    assert "A similar run" in plan(), "one that cannot be read is skipped"


def test_the_plan_says_what_the_text_encoder_costs(character: Path, tiny_sd: Path) -> None:
    form = form_values(base=str(tiny_sd))
    refilled = settings.refill(Answers.from_form(form))
    form |= {"filled": refilled["filled"], **refilled["widgets"]}
    for trains in (True, False):
        summary = train.plan(Answers.from_form(form | {"form-training-text-encoder": trains}))["summary"]
        assert ("about 0.2 GB more memory" in summary) == ("text encoder" in summary) == trains
    assert "text encoder" not in plan(), "micro is small"


def plan(**changes: object) -> str:
    return train.plan(answers(**changes))["summary"]


def shown() -> list[Any]:
    kept = train.show("rin")["opening"]
    return list(settings.AS_DRAWN.values) if kept == gr.skip() else kept["values"]


def values_of(form: dict[str, Any]) -> list[Any]:
    return [form[entry.id] for entry in train.ENTRIES]


def test_the_form_is_as_it_was_left(character: Path) -> None:
    assert train.show("rin")["opening"] == gr.skip(), "a page that opens has these settings"
    left = form_values(**{"form-adapter-rank-lora": 5})
    settings.remember(Answers.from_form(left))
    assert shown() == values_of(left)
    page_memory.remember("rin", "settings", '{"adapter": {"kind": "gone"}}')
    assert shown() == FORM
    page_memory.remember("rin", "trigger", "miraxo")
    for damaged in ("[" * 100_000, "[]"):
        page_memory.remember("rin", "settings", damaged)
        outputs = train.show("rin")
        assert (shown(), outputs["trigger"]) == (FORM, "miraxo")
        words = '<p role="alert">The settings that were remembered for this project cannot be read.'
        assert outputs["cautions"].startswith(words)


CONFLICT = {"form-optimizer-kind": "schedule-free", "form-training-exposures": 99}


BEGUN = events.Started(step=0, steps=40, pid=1, device="CPU")
FINISHED = events.Finished(step=40, export="rin.safetensors")


def test_settings_that_conflict_are_said_at_their_field(character: Path) -> None:
    """Prodigy and a rate for the text encoder that somebody typed; that of a preset gives way."""
    left = form_values(**{"form-optimizer-kind": "prodigy", "form-training-text-encoder-lr-factor": 0.5})
    settings.remember(Answers.from_form(left))
    outputs = train.show("rin")
    assert shown() == values_of(left)
    assert outputs["notes"] == train.plan(Answers.from_form(left))["notes"]
    assert outputs["notes"]["changed"]["form-optimizer-kind"] == "Default: adamw"
    ((field, conflict),) = outputs["notes"]["conflicts"].items()
    assert field == "form-training-text-encoder-lr-factor"
    assert conflict["reason"] in outputs["summary"]
    settings.remember(answers(**{"form-optimizer-kind": "prodigy"}))
    assert train.show("rin")["notes"]["conflicts"] == {}


def test_two_pages_store_what_is_edited_in_either(character: Path) -> None:
    """Reset and resolved conflicts, too, change only their field."""

    def own() -> dict[str, Any]:
        return settings_form.own_of(train.ENTRIES, page_memory.settings("rin") or {})

    rank, steps = {"form-adapter-rank-lora": 5.0}, {"form-training-steps": 7.0}
    run_settings.store("rin", {"form-adapter-rank-lora": "5"})
    run_settings.store("rin", {"form-training-steps": "7"})
    assert own() == rank | steps | {"form-adapter-kind": "lora"}
    settings.reset(answers(), event("form-training-steps"))
    assert own() == rank | {"form-adapter-kind": "lora"}
    settings.fix_conflict(answers(**CONFLICT), event("form-schedule-kind"))
    train.choose_effort("rin", "quick", "character", "micro")
    assert own()["form-training-exposures"] == 136
    assert own() | rank == own(), "the rank of the other page stays"
    run_settings.store("rin", {"preset": "style", "base": ' "micro" ', "name": "fox", "form-adapter-rank-lora": "16"})
    run_settings.store("rin", {"name": "a/b"})
    assert "form-adapter-rank-lora" not in own(), "its usual value"
    assert [page_memory.answer("rin", key) for key in ("preset", "base", "name")] == ["style", "micro", "fox"]


ACTS: dict[str, Callable[[Answers], object]] = {
    "effort": lambda form: train.choose_effort("rin", "quick", "character", "micro", asdict(form.sent)),
    "reset": lambda form: settings.reset(form, event("form-training-exposures")),
    "reset all": settings.reset_all_settings,
    "start": train.create,
    "trigger": lambda form: images.add_trigger("rin", "miraxo", Selection(sent=form.sent)),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_arrives_late_leaves_later_answers(character: Path, act: str) -> None:
    typed = {"trigger": "zorblax", "form-training-exposures": "123"}
    moment = {"page": "typing", "number": 7}
    typed_route._store(
        [], [{"project": "rin", "name": name, "value": value, **moment} for name, value in typed.items()], []
    )
    ACTS[act](answers(sent={"page": "typing", "number": 6}))
    assert page_memory.answer("rin", "trigger") == "zorblax"
    assert page_memory.settings("rin") == {"training": {"exposures": 123}}
    ACTS["reset all"](answers(sent={"page": "typing", "number": 8}))
    assert page_memory.settings("rin") == {}


def event(field: str) -> gr.EventData:
    return gr.EventData(None, {"field": field, "fields": [field]})


@pytest.mark.parametrize(
    "data",
    [
        {"optimizer": {"kind": "schedule-free"}},
        {"optimizer": {"kind": "schedule-free"}, "schedule": {"kind": "constant"}, "training": {"ema_decay": 0.9}},
        {"optimizer": {"kind": "prodigy"}, "training": {"text_encoder": True, "text_encoder_lr_factor": 0.5}},
        {"optimizer": {"kind": "prodigy"}, "adapter": {"lora_plus_ratio": 4.0}},
        {"adapter": {"kind": "loha"}, "model": {"weights": "nf4"}},
        {"adapter": {"dora": True}, "preview": {"strength": 0.5}},
        {"adapter": {"dora": True, "rank_dropout": 0.5}},
        {"objective": {"min_timestep": 800, "max_timestep": 200}},
        {"training": {"batch_size": 2, "micro_batches": 4}},
        {"training": {"resolution": 512}},
        {"training": {"further_resolutions": [64, 64]}},
    ],
)
def test_every_conflict_has_a_value_that_resolves_it(data: dict[str, Any]) -> None:
    data = config.merge({"name": "x", "dataset": "x", "preset": "character", "model": {"base": "micro"}}, data)
    (path, error), *others = config.find_errors(data).items()
    assert not others
    assert len(settings_form.conflicts(train.ENTRIES, data)) == 1
    section, name = path.split(".")
    fixed = config.merge(data, {section: data.get(section, {}) | {name: error.fix}})
    assert config.find_errors(fixed) == {}


def test_saved_settings_that_cannot_be_used_are_refused(character: Path) -> None:
    for wrong in ("", "../x", "gone"):
        with pytest.raises(UserError):
            settings.load_settings(answers(), wrong)
    with pytest.raises(UserError, match="no name"):
        settings.save_settings(answers(), " ")
    run_settings.save("odd", {"preset": "odd"})
    with pytest.raises(UserError, match="cannot be used"):
        settings.load_settings(answers(), "odd")


@pytest.mark.usefixtures("places")
def test_a_start_makes_a_run_from_the_form_as_it_stands(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to the cluster of this page, if it has one that no others share."""
    run = train.create(answers(name="mine", trigger=" miraxo ", **{"form-training-steps": 7}))
    config = run.config()
    assert (config.name, config.trigger, config.training.steps, config.dataset) == ("mine", "miraxo", 7, "rin")
    assert page_memory.answer("rin", "name") == "mine"
    assert train.create(answers(name=" ")).config().name == "rin"
    dataset.create("empty")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"project": "empty"}, "no images"),
        ({"name": "a/b"}, "Name: use letters"),
        ({"base": "gone.safetensors"}, "does not exist"),
        ({"base": "anna/base"}, "is not on this machine"),
    ]
    for changes, words in (*wrong, ({"form-training-resolution": 512}, "set it to 128")):
        with pytest.raises(UserError, match=words):
            train.create(answers(**changes))
    assert len(runs.all_runs()) == 2
    assert run_actions.cluster() == run.cluster == ""
    monkeypatch.setenv("LIMNER_CLUSTER", "127.0.0.1:6379")
    assert train.create(answers(), run_actions.cluster()).cluster == "127.0.0.1:6379"
    assert train.create(answers()).cluster == ""


def test_a_tick_is_quiet_until_something_changes(character: Path) -> None:
    watch, run = RunWatcher(), train.create(answers())
    panel = run_view.draw(watch, run.id)["panel"]
    seen = {"stamp": panel["stamp"], "runs": panel["runs"]}
    assert run_view.tick(watch, run.id, seen) == {}
    run.report(BEGUN)
    later = run_view.tick(watch, run.id, seen)
    assert later["picker"] == gr.skip(), "the choice is left alone"
    assert later["panel"]["revision"] > panel["revision"]
    assert (panel["asked"], later["panel"]["asked"]) == ("", run.id), "the browser drops what is about another run"
    assert run_view.draw(RunWatcher(), None)["panel"]["runs"] == [run.id]
    with pytest.raises(UserError, match="not active"):
        run_actions.ask(run.id, "stop")


def test_buttons_are_a_function_of_the_state(character: Path) -> None:
    run = train.create(answers())
    failed = events.Failed(message="", remedy="", traceback="", change={"optimizer.learning_rate": 1e-4})
    for event, expected in (
        (BEGUN, {"resume": ""}),
        (events.Stopped(step=3), {"resume": ""}),
        (failed, {"resume": "", "again": "Train again with learning rate 0.0001"}),
        (BEGUN, {"resume": ""}),
        (FINISHED, {"more": "Train 20 more steps", "try-it": ""}),
    ):
        run.report(event)
        texts = {name: text for name, text, *_ in run_view.buttons(RunWatcher().view(run))}
        assert texts.keys() == expected.keys()
        assert all(text in ("", texts[name]) for name, text in expected.items())


def test_a_failed_run_is_trained_again_with_its_change(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(warm_worker, "start", started.append)
    run = train.create(answers())
    with pytest.raises(UserError, match="has not failed"):
        run_actions.retry(run.id, SamplerClient())
    for change in ({"optimizer.learning_rate": 1e-4}, {}):
        run.report(events.Failed(message="m", remedy="r", traceback="", change=change))
        run_actions.retry(run.id, SamplerClient())
    assert len({run, *started}) == 3
    assert started[0].config().optimizer.learning_rate == 1e-4
    assert started[0].config().adapter == run.config().adapter
    assert config.dump(started[1].config()) == config.dump(run.config()), "the same settings"
    for event in (BEGUN, FINISHED):
        run.report(event)
    run_actions.extend(run.id, SamplerClient())
    assert started[2].config().training.steps == 60
    run.config_file.write_text(run.config_file.read_text().replace('base = "micro"', 'base = "/gone.safetensors"'))
    run.report(FINISHED)
    with pytest.raises(UserError, match=r"'gone\.safetensors' does not exist"):
        run_actions.extend(run.id, SamplerClient())
    assert run.config().training.steps == 60, "it stays as it was, finished"


def test_train_and_download_say_that_micro_is_for_practice(finished: runs.Run) -> None:
    sentence = base_model_choices.practice("micro")
    assert all(words in sentence for words in ("draws portraits only", "Limner and diffusers only", "for real results"))
    assert base_model_choices.practice("owner/name") == ""
    assert train.plan(answers())["cautions"] == "", "it stands below the base"
    assert "draws portraits" not in run_html.status(runs.look(finished)), "nor is it said twice"
    assert sentence in download.table(RunWatcher())
    for text in (config.dump(finished.config()).replace('base = "micro"', 'base = "owner/name"'), "{"):
        finished.config_file.write_text(text)
        assert "draws portraits" not in download.table(RunWatcher())
