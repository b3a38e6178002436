"""Widgets of the form that `settings_form` describes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import gradio as gr

from trainer.config import TrainConfig
from ui.templates import render
from ui.widgets.fields import field
from ui.widgets.handlers import listen
from ui.widgets.settings_form import Entry, titled, value_of, values

FIRST = ("training", "adapter", "optimizer", "schedule", "captions", "images", "preview")  # those that are changed most
VISIBLE = "(kind) => [{ __type__: 'update', visible: kind === OPTION }]"


def some(listed: Sequence[Entry], paths: Sequence[tuple[str, ...]], config: TrainConfig) -> dict[str, Any]:
    """Draw the widgets of some settings outside the form; returns them by their ids, for `widgets`."""
    chosen = [next(entry for entry in listed if entry.path == path) for path in paths]
    return {entry.id: _widget(entry, value_of(entry, config)) for entry in chosen}


def widgets(listed: Sequence[Entry], config: TrainConfig, apart: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the form; returns the components by id in the order of the entries, including those drawn `apart`."""
    inside = sorted((entry for entry in listed if entry.id not in apart), key=_place)
    components: list[Any] = []
    initial = iter(values(inside, config))
    for group, members in groupby(inside, key=lambda entry: entry.group):
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(group))
            for option, same in groupby(members, key=lambda entry: entry.option):
                components += _row(list(same), initial, option, components)
    drawn = dict(zip((entry.id for entry in inside), components, strict=True)) | dict(apart)
    return {entry.id: drawn[entry.id] for entry in listed}


def _place(entry: Entry) -> int:
    return (*FIRST, entry.path[0]).index(entry.path[0])


def _heading(group: str) -> str:
    """Render the heading of a group: it folds the group, and resets the settings in it that are changed."""
    return render("settings_group.html", group=group)


def _row(same: list[Entry], initial: Iterator[Any], option: str, above: list[Any]) -> list[Any]:
    """Draw widgets of one option; those of a union's section are visible while its kind is chosen."""
    if not option:
        return [_widget(entry, next(initial)) for entry in same]
    radio = next(component for component in reversed(above) if isinstance(component, gr.Radio))
    with gr.Column(visible=radio.value == option) as column:
        drawn = [_widget(entry, next(initial)) for entry in same]
    listen(radio.change, None, {"kind": radio}, {"column": column}, js=VISIBLE.replace("OPTION", json.dumps(option)))
    return drawn


def _widget(entry: Entry, value: object) -> gr.Component:
    about = entry.id, entry.title, entry.help
    match entry.kind:
        case "flag":
            return field(gr.Checkbox, *about, value=value)
        case "choice" if entry.path[-1] == "kind":
            return field(gr.Radio, *about, choices=titled(entry), value=value)
        case "choice":
            return field(gr.Dropdown, *about, choices=titled(entry), value=value)
        case "whole" | "number":
            return field(gr.Number, *about, value=value)  # the schema checks its bounds and names the setting
        case "lines":
            return field(gr.Textbox, *about, value=value, lines=3, max_lines=8)
        case _:
            return field(gr.Textbox, *about, value=value, max_lines=1)
