"""The form: every setting has a widget, values survive the way there and back, errors name the setting."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from trainer import schema
from trainer.config import TrainConfig, comparison
from trainer.errors import UserError
from ui.widgets import settings_form

ENTRIES = settings_form.entries()


def by_id(form: list[Any]) -> dict[str, Any]:
    return dict(zip([entry.id for entry in ENTRIES], form, strict=True))


def values(preset: str = "character", base: str = "micro", **changes: object) -> list[Any]:
    usual = settings_form.values(ENTRIES, settings_form.standard(preset, base))
    return [changes.get(entry.id, value) for entry, value in zip(ENTRIES, usual, strict=True)]


def read(preset: str = "character", base: str = "micro", **changes: object) -> dict[str, Any]:
    return settings_form.read(ENTRIES, values(preset, base, **changes), settings_form.standard(preset, base))


def settings_of(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, info in section.model_fields.items():
        if not path and name in comparison.ABOUT_THE_RUN:
            continue
        kinds = schema.sections(info.annotation)
        for kind in kinds:
            yield from settings_of(kind, (*path, name))
        if not kinds and str(info.annotation).count("'") != 2:  # a Literal of one value is not a choice
            yield (*path, name)


def test_every_setting_has_one_widget_and_a_help_text() -> None:
    paths = [entry.path for entry in ENTRIES]
    assert set(settings_of(TrainConfig)) <= set(paths)
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.help for entry in ENTRIES if entry.path[-1] != "kind")
    titles = schema.kind_titles(TrainConfig)
    assert [titles[kind] for kind in ("adamw8bit", "came", "lokr")] == ["AdamW 8-bit", "CAME", "LoKr"]


@pytest.mark.parametrize("preset", ["character", "style", "plain"])
@pytest.mark.parametrize("base", ["micro", "/models/sd15"])
def test_an_untouched_form_asks_for_nothing(preset: str, base: str) -> None:
    assert read(preset, base) == {}


def test_a_union_gives_its_kind_and_the_fields_of_that_kind_only() -> None:
    assert read(**{"form-schedule-kind": "constant"}) == {"schedule": {"kind": "constant"}}
    warmup = {"form-schedule-kind": "constant", "form-schedule-warmup-constant": 0.2}
    data = read(**warmup, **{"form-schedule-min-lr-ratio-cosine": 0.9})
    assert data == {"schedule": {"kind": "constant", "warmup": 0.2}}
    config = settings_form.build(ENTRIES, data | {"name": "x", "dataset": "y"})
    filled = by_id(settings_form.values(ENTRIES, config))
    assert {name: filled[name] for name in warmup} == warmup


@pytest.mark.parametrize(
    ("widget", "value", "title"),
    [
        ("form-adapter-rank-lora", None, "Rank"),
        ("form-optimizer-learning-rate-adamw", float("nan"), "Learning rate"),
        ("form-training-precision", "int1", "Precision"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name_in_the_form(widget: str, value: object, title: str) -> None:
    with pytest.raises(UserError, match=f"{title}: "):
        settings_form.build(ENTRIES, read(**{widget: value}) | {"name": "x", "dataset": "y"})


def test_another_preset_moves_what_was_not_changed() -> None:
    before = settings_form.fill(ENTRIES, "character", "micro", {})
    own = settings_form.changed(ENTRIES, before, values(**{"form-adapter-rank-lora": 4}))
    assert own == {"form-adapter-rank-lora": 4}
    after = settings_form.fill(ENTRIES, "style", "micro", own)
    moved, large = by_id(after.values), by_id(settings_form.fill(ENTRIES, "character", "/sd15", own).values)
    assert moved["form-adapter-rank-lora"] == 4
    style, character = (settings_form.standard(preset, "micro").training.exposures for preset in ("style", "character"))
    assert moved["form-training-exposures"] == style != character
    assert large["form-training-resolution"] == 512
    assert settings_form.changed(ENTRIES, after, after.values) == own, "what was changed stays known as that"


def test_partial_settings_become_changed_ones_and_back() -> None:
    data = {
        "training": {"steps": 30, "further_resolutions": [96, 64]},
        "adapter": {"rank": 8, "kind": "lora"},
        "preview": {"prompts": ["a", "b"], "every": 0, "at_start": False},
    }
    own = settings_form.own_of(ENTRIES, data)
    assert (own["form-training-further-resolutions"], own["form-preview-prompts"]) == ("96, 64", "a\nb")
    assert settings_form.partial(ENTRIES, own, settings_form.standard("character", "micro")) == data
    assert settings_form.own_of(ENTRIES, {"adapter": {"kind": "gone", "rank": 3}, "training": 4}) == {}
