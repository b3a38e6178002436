"""The Train tab: the form, the plan, saved settings, base models, and the run view."""

import re
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.unit.ui.answers import FORM, answers, form_values
from tests.unit.ui.widgets.test_run_html import STEP
from trainer import config, runs
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import events
from ui import launch
from ui.server import accounts
from ui.state import page_memory, run_actions, saved_settings, warm_worker
from ui.state.answers import Answers
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import run_view, settings, train
from ui.widgets import settings_form


def test_the_plan_says_what_a_start_would_do(character: Path) -> None:
    summary, _cautions, effort, notes = train.plan(answers())
    assert (notes["changed"], notes["conflicts"]) == ({}, {})
    assert summary.startswith("<b>14 images, 160 steps</b>: each image is seen about 91 times. <span class='costs'>An")
    assert "GB of disk space is free." in summary
    assert effort.value == "balanced"
    assert [words for words, _ in effort.choices] == ["Quick look", "Balanced", "Thorough"]
    assert "7 steps" in plan(**{"form-training-steps": 7})
    assert "Rank" in plan(**{"form-adapter-rank-lora": -1})
    assert "first" in plan(project="")
    dataset.create("empty")
    assert "no images" in plan(project="empty")
    shutil.copytree(character, character.with_name("kim"))
    summary = plan(**{"form-subjects": "kim --trigger kmx2 --repeats 3", "form-training-steps": 140})
    assert "By subject: miraxo 20 times, kmx2 60 times." in summary


def test_the_plan_says_what_an_effort_takes(character: Path) -> None:
    """The time and the memory of a similar run."""
    run, begun = train.create(answers()), datetime(2026, 1, 1, tzinfo=UTC)
    run.report(events.Started(step=0, steps=160, pid=1, device="CPU"))
    for step in (1, 2, 3):
        time = begun + timedelta(seconds=step)
        run.report(events.Step(step=step, time=time, **STEP | {"loss": 1.0, "memory": 3 * 2**30}))
    seen, fixed = train.exposures("quick", "character", "micro")
    assert fixed == 0
    summary, _cautions, effort, _notes = train.plan(answers(**{"form-training-exposures": seen}))
    assert "about 65 s here" in summary
    assert re.search(r"A similar run took 3\.0 GB of memory; \d+ GB are free\.", summary)
    assert effort.value == "quick"
    assert next(words for words, _ in effort.choices) == "Quick look, about 65 s"


def test_the_plan_says_what_the_text_encoder_costs(character: Path, tiny_sd: Path) -> None:
    form = form_values()
    form[4:6] = [str(tiny_sd), form[5] | {"request": 7}]
    filled = settings.refill(Answers.from_form(form))
    assert filled["request"] == 7, "an answer has the number of its request"
    for trains in (True, False):
        entries = zip(train.ENTRIES, filled["values"], strict=True)
        values = [trains if entry.path == train.TEXT_ENCODER else value for entry, value in entries]
        summary = train.plan(Answers.from_form([*form[:5], filled, *values]))[0]
        assert ("about 0.2 GB more memory" in summary) == ("text encoder" in summary) == trains
    assert "text encoder" not in train.plan(answers())[0], "micro is small"


def plan(**changes: object) -> str:
    return str(train.plan(answers(**changes))[0])


def form_of(outputs: list[Any]) -> list[Any]:
    """The widgets' values among those of `train.show`."""
    return outputs[11]["filled"]["values"]


def test_the_form_is_as_it_was_left(character: Path) -> None:
    assert train.show("rin", opened=True)[11] == gr.skip(), "a page that opens has these settings"
    left = form_values(**{"form-adapter-rank-lora": 5})
    settings.remember(Answers.from_form(left))
    assert form_of(train.show("rin")) == form_of(train.show("rin", opened=True)) == left[6:]
    page_memory.remember("rin", "settings", '{"adapter": {"kind": "gone"}}')
    assert form_of(train.show("rin")) == FORM


@pytest.mark.parametrize("settings", ["[" * 100_000, "[]"])
def test_remembered_settings_that_cannot_be_read_are_standard(character: Path, settings: str) -> None:
    page_memory.remember("rin", "settings", settings)
    page_memory.remember("rin", "trigger", "miraxo")
    outputs = train.show("rin")
    assert form_of(outputs) == FORM
    assert outputs[2] == "miraxo"
    assert outputs[13].startswith("<p role='alert'>The settings that were remembered for this project cannot be read.")


CONFLICT = {"form-optimizer-kind": "schedule-free", "form-training-exposures": 99}


def test_settings_that_conflict_are_said_at_their_field(character: Path) -> None:
    left = form_values(**CONFLICT)
    settings.remember(Answers.from_form(left))
    outputs = train.show("rin")
    assert form_of(outputs) == left[6:]
    words = "a schedule-free optimizer needs the constant schedule"
    assert outputs[-1] == train.plan(Answers.from_form(left))[-1]
    assert outputs[-1]["conflicts"] == {"form-schedule-kind": {"reason": words, "fix": "Set to constant"}}
    defaults = {"form-optimizer-kind": "Default: adamw", "form-training-exposures": "Default: 340"}
    assert outputs[-1]["changed"] == defaults
    assert words in outputs[-4]
    settings.save_settings(Answers.from_form(left), "mine")
    assert settings.load_settings(answers(), "mine")[2]["values"] == left[6:]
    # Prodigy and a rate for the text encoder that somebody typed; that of a preset gives way.
    left = form_values(**{"form-optimizer-kind": "prodigy", "form-training-text-encoder-lr-factor": 0.5})
    settings.remember(Answers.from_form(left))
    assert form_of(train.show("rin")) == left[6:]
    assert set(train.show("rin")[-1]["conflicts"]) == {"form-training-text-encoder-lr-factor"}
    settings.remember(answers(**{"form-optimizer-kind": "prodigy"}))
    assert train.show("rin")[-1]["conflicts"] == {}


def event(field: str) -> gr.EventData:
    return gr.EventData(None, {"field": field, "fields": [field]})


def test_a_conflict_is_resolved_and_a_field_is_reset(character: Path) -> None:
    left = answers(**CONFLICT, **{"form-schedule-kind": "linear"})
    fixed = settings.fix_conflict(left, event("form-schedule-kind"))
    values = dict(zip([entry.id for entry in train.ENTRIES], fixed["values"], strict=True))
    assert (values["form-schedule-kind"], values["form-optimizer-kind"]) == ("constant", "schedule-free")
    assert values["form-training-exposures"] == 99
    assert train.show("rin")[-1]["conflicts"] == {}  # it is remembered, too
    with pytest.raises(UserError, match="already resolved"):
        settings.fix_conflict(answers(), event("form-schedule-kind"))

    twice = answers(**{"form-training-further-resolutions": "64 64"})
    fixed = settings.fix_conflict(twice, event("form-training-further-resolutions"))
    values = dict(zip([entry.id for entry in train.ENTRIES], fixed["values"], strict=True))
    assert values["form-training-further-resolutions"] == "64"

    reset = settings.reset(left, event("form-optimizer-kind"))
    values = dict(zip([entry.id for entry in train.ENTRIES], reset["values"], strict=True))
    assert (values["form-optimizer-kind"], values["form-training-exposures"]) == ("adamw", 99)
    assert list(train.show("rin")[-1]["changed"]) == ["form-schedule-kind", "form-training-exposures"]
    assert settings.reset_all_settings(left)["values"] == FORM
    assert train.show("rin")[-1]["changed"] == {}


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


def test_settings_are_kept_under_a_name_and_used_again(character: Path) -> None:
    left = form_values(**{"form-training-steps": 7})
    kept, name = settings.save_settings(Answers.from_form(left), "mine")
    assert (kept.value, kept.choices, name) == ("mine", [("mine", "mine")], "")
    preset, base, filled = settings.load_settings(answers(), "mine")
    values = filled["values"]
    assert [preset, base, *values] == ["character", "micro", *left[6:]]
    assert Answers.from_form(["rin", preset, "x", "", base, filled, *values]).own == {"form-training-steps": 7}
    for wrong in ("", "../x", "gone"):
        with pytest.raises(UserError):
            settings.load_settings(answers(), wrong)
    with pytest.raises(UserError, match="no name"):
        settings.save_settings(answers(), " ")
    (saved_settings.folder() / "odd.toml").write_text('preset = "odd"')
    with pytest.raises(UserError, match="cannot be used"):
        settings.load_settings(answers(), "odd")


def test_a_start_makes_a_run_from_the_form_as_it_stands(character: Path) -> None:
    run = train.create(answers(name="mine", trigger=" miraxo ", **{"form-training-steps": 7}))
    config = run.config()
    assert (config.name, config.trigger, config.training.steps, config.dataset) == ("mine", "miraxo", 7, "rin")
    assert page_memory.answer("rin", "name") == "mine"
    assert train.create(answers(name=" ")).config().name == "rin"
    dataset.create("empty")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"project": "empty"}, "no images"),
        ({"name": "a/b"}, "Name: use letters"),
    ]
    for changes, words in (*wrong, ({"form-training-resolution": 512}, "set it to 128")):
        with pytest.raises(UserError, match=words):
            train.create(answers(**changes))
    assert len(runs.all_runs()) == 2


def test_a_start_goes_to_the_cluster_of_this_page(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_actions.cluster() == ""
    monkeypatch.setenv("LIMNER_CLUSTER", "127.0.0.1:6379")
    assert train.create(answers(), run_actions.cluster()).cluster == "127.0.0.1:6379"
    assert train.create(answers()).cluster == ""
    monkeypatch.setenv("LIMNER_SHARED", str(character))
    assert run_actions.cluster() == "", "several people share the page"
    accounts.add("anna")
    with socket.socket() as listener, pytest.raises(UserError, match="--cluster is for a page without accounts"):
        launch.make_server(launch.parse_options([]), listener)


def test_a_tick_is_quiet_until_something_changes(character: Path) -> None:
    watch = RunWatcher()
    run = train.create(answers())
    drawn = run_view.draw(watch, run.id)
    seen = drawn[3]
    assert run_view.tick(watch, run.id, seen) == gr.skip()
    run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
    assert run_view.tick(watch, run.id, seen) != gr.skip()
    assert run_view.draw(RunWatcher(), None)[3][0] == [run.id]
    for act in (lambda: run_actions.ask(run.id, "stop"), lambda: run_actions.toggle_pause(run.id, SamplerClient())):
        with pytest.raises(UserError, match="not active"):
            act()


def test_buttons_are_a_function_of_the_state(character: Path) -> None:
    run = train.create(answers())

    def visible() -> set[str]:
        buttons = run_view.draw(RunWatcher(), run.id)[-len(run_view.BUTTONS) :]
        return {name for (name, *_), button in zip(run_view.BUTTONS, buttons, strict=True) if button.visible}

    begun = events.Started(step=0, steps=40, pid=1, device="CPU")
    run.report(begun)
    assert visible() == {"resume"}
    run.report(events.Stopped(step=3))
    assert visible() == {"resume"}
    run.report(events.Failed(message="Bad.", remedy="Less.", traceback="", change={"optimizer.learning_rate": 1e-4}))
    assert visible() == {"resume", "again"}
    assert run_view.draw(RunWatcher(), run.id)[-5].value == "Train again with learning rate 0.0001"
    run.report(begun)
    run.report(events.Finished(step=40, export="rin.safetensors"))
    assert visible() == {"more", "try-it"}
    assert run_view.draw(RunWatcher(), run.id)[-3].value == "Train 20 more steps"


def test_a_failed_run_is_trained_again_with_its_change(character: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(warm_worker, "start", started.append)
    run = train.create(answers())
    with pytest.raises(UserError, match="has not failed"):
        run_actions.retry(run.id, SamplerClient())
    run.report(events.Failed(message="m", remedy="r", traceback="", change={"optimizer.learning_rate": 1e-4}))
    run_actions.retry(run.id, SamplerClient())
    assert started[0] != run
    assert started[0].config().optimizer.learning_rate == 1e-4
    assert started[0].config().adapter == run.config().adapter
    run.report(events.Failed(message="m", remedy="r", traceback=""))
    run_actions.retry(run.id, SamplerClient())
    assert started[1] not in (run, started[0])
    assert config.dump(started[1].config()) == config.dump(run.config()), "the same settings"
    run.report(events.Started(step=0, steps=40, pid=1, device="CPU"))
    run.report(events.Finished(step=40, export="rin.safetensors"))
    run_actions.extend(run.id, SamplerClient())
    assert started[2].config().training.steps == 60


def test_the_settings_can_be_edited_as_a_text(character: Path) -> None:
    left = answers(**{"form-training-exposures": 99})
    text, report, use, export = settings.as_text(left)
    assert (report, use.interactive, export.interactive) == ("", True, True)
    assert "exposures = 99" in text
    assert settings.use_text(left, text)[1]["values"] == settings.fill(left).values
    changed = settings.use_text(left, text.replace("exposures = 99", "exposures = 98"))[1]
    assert changed["values"] == settings.fill(answers(**{"form-training-exposures": 98})).values
    for wrong, words in (
        ("[training]\nstep = 3", "training.step is not a setting"),
        ("[training]\nsteps = -3", "steps"),
        ("training", "The text is not a TOML file"),
    ):
        report, use, export = settings.check_text(left, wrong)
        assert words in report
        assert not use.interactive
        assert not export.interactive
        with pytest.raises(UserError):
            settings.use_text(left, wrong)


def test_a_recipe_of_another_trainer_fills_the_form(character: Path, tmp_path: Path) -> None:
    file = tmp_path / "kohya.toml"
    file.write_text('network_dim = 12\nnetwork_alpha = 6\nunet_lr = 2e-4\nmax_train_steps = 77\nmade_up = "<b>"\n')
    report, base, filled = settings.use_recipe(answers(), str(file))
    assert base == "micro"
    values = dict(zip([entry.id for entry in train.ENTRIES], filled["values"], strict=True))
    assert (values["form-adapter-rank-lora"], values["form-adapter-alpha-lora"]) == (12, 6.0)
    assert (values["form-training-steps"], values["form-optimizer-learning-rate-adamw"]) == (77, 2e-4)
    assert "made_up" in report
    assert "<b>" not in report
    assert not file.exists()
    broken = tmp_path / "x.json"
    broken.write_text("{")
    with pytest.raises(UserError, match="not a recipe"):
        settings.use_recipe(answers(), str(broken))
