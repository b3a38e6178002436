"""A form made from the schema of the settings, and back: a setting is named once, in the schema, and appears here.

bool -> checkbox, Literal -> dropdown, number -> number, list of texts -> lines, section -> group, union of sections
-> radio with one group for each kind. Values are matched by the path of their setting. The schema is in English, for
files and programs; its titles, helps and choices become words of the page's language here.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer import config as configs
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import say

Kind = Literal["flag", "choice", "whole", "number", "text", "lines"]
ELSEWHERE = frozenset({"task", "name", "dataset", "preset", "trigger", "record"})
BASE = ("model", "base")  # chosen above the form


@dataclass(frozen=True)
class Entry:
    """One widget: where its setting is, what it is called, and of what kind it is.

    `option` is the kind of a union's section that the setting belongs to; "" outside unions.
    """

    path: tuple[str, ...]
    kind: Kind
    title: str
    help: str
    group: str
    choices: tuple[str, ...] = ()
    option: str = ""

    @property
    def id(self) -> str:
        """The element's id on the page."""
        return "-".join(("form", *self.path, self.option)).rstrip("-").replace("_", "-")


def entries(
    section: type[BaseModel] = TrainConfig, path: tuple[str, ...] = (), group: str = "", option: str = ""
) -> list[Entry]:
    """The widgets for a section and all that is in it, groups together."""
    single: list[Entry] = []
    nested: list[Entry] = []
    for name, info in section.model_fields.items():
        here = (*path, name)
        if (not path and name in ELSEWHERE) or here == BASE:
            continue
        title = say(title_of(name, info))
        sections = _sections(info.annotation)
        if len(sections) == 1:
            nested += entries(sections[0], here, title)
        elif sections:
            kinds = tuple(str(one.model_fields["kind"].default) for one in sections)
            nested.append(Entry((*here, "kind"), "choice", say("Kind"), "", title, kinds))
            for one, kind in zip(sections, kinds, strict=True):
                nested += entries(one, here, title, kind)
        else:
            single += _single(here, info, title, group or say("General"), option)
    return single + nested


def title_of(name: str, info: FieldInfo) -> str:
    """Return the label of a setting, in English."""
    return info.title or name.replace("_", " ").capitalize()


def _single(path: tuple[str, ...], info: FieldInfo, title: str, group: str, option: str) -> list[Entry]:
    annotation, choices = info.annotation, ()
    kind: Kind
    if get_origin(annotation) is Literal:
        kind, choices = "choice", get_args(annotation)
        if len(choices) < 2:  # nothing to choose
            return []
    elif get_origin(annotation) is tuple:
        kind = "lines"
    elif annotation is bool:
        kind = "flag"
    elif annotation is int:
        kind = "whole"
    elif annotation is float:
        kind = "number"
    elif annotation is str:
        kind = "text"
    else:
        raise TypeError(f"no widget for {'.'.join(path)}: {annotation}")
    return [Entry(path, kind, title, _help(info), group, choices, option)]


def _help(info: FieldInfo) -> str:
    bounds = {}
    for part in info.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if hasattr(part, name):
                bounds[name] = getattr(part, name)
    low = bounds.get("ge", bounds.get("gt"))
    high = bounds.get("le", bounds.get("lt"))
    text = say(info.description or "")
    if low is None or high is None or high > 1000:
        return text
    return f"{text} {say('{low:g} to {high:g}.', low=low, high=high)}"


def _sections(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any annotation there is
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


# Values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """Source of the form's values: a preset, a base, the settings that the user changed, and all values.

    It lies in the page beside the values and comes back with them, so that the two belong together whatever the order
    in which requests arrive. `own` are the changed settings, by the id of their widget, as they were typed.
    """

    preset: str
    base: str
    own: dict[str, Any]
    values: list[Any]


def fill(listed: Sequence[Entry], preset: str, base: str, own: dict[str, Any]) -> Filled:
    """Return the form's values for a preset and a base; what the person changed stays as it was typed.

    Where the changes conflict with each other or with the base, the rest of the form shows the preset.
    """
    usual = standard(preset, base)
    try:
        config = configs.build(configs.merge(as_settings(preset, base), partial(listed, own, usual)))
    except UserError:
        config = usual
    shown = [own.get(entry.id, value) for entry, value in zip(listed, values(listed, config), strict=True)]
    return Filled(preset, base, own, shown)


def changed(listed: Sequence[Entry], filled: Filled, given: Sequence[Any]) -> dict[str, Any]:
    """Return the settings that the person has changed by now, by the id of their widget, as they were typed."""
    own = dict(filled.own)
    for entry, value, before in zip(listed, given, filled.values, strict=True):
        if _plain(entry, value) != _plain(entry, before):
            own[entry.id] = value
    return own


def partial(listed: Sequence[Entry], own: dict[str, Any], usual: TrainConfig) -> dict[str, Any]:
    """Return changed settings as partial settings, without those that are as usual."""
    shown = [own.get(entry.id, value) for entry, value in zip(listed, values(listed, usual), strict=True)]
    return read(listed, shown, usual)


def own_of(listed: Sequence[Entry], data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings as changed settings; what the form has no widget or no choice for is left out."""
    own = {}
    for entry in listed:
        value: Any = data
        for name in entry.path:
            value = value.get(name) if isinstance(value, dict) else None
        section = data.get(entry.path[0])
        kind = section.get("kind") if isinstance(section, dict) else None
        if value is None or (entry.option and entry.option != kind) or (entry.choices and value not in entry.choices):
            continue
        own[entry.id] = "\n".join(map(str, value)) if entry.kind == "lines" and isinstance(value, list) else value
    return own


def standard(preset: str, base: str) -> TrainConfig:
    """Return the config if nothing is changed in the form."""
    return configs.build(as_settings(preset, base))


def as_settings(preset: str, base: str) -> dict[str, Any]:
    """The partial settings of a preset and a base, of a run that has no name yet."""
    return {"name": "x", "dataset": "x", "preset": preset, "model": {"base": base or MICRO}}


def values(listed: Sequence[Entry], config: TrainConfig) -> list[Any]:
    """Return the widgets' values for a config."""
    return [_shown(entry, config) for entry in listed]


def _shown(entry: Entry, config: TrainConfig) -> Any:  # noqa: ANN401 - a setting of any kind
    *sections, last = entry.path
    section: Any = config
    for name in sections:
        section = getattr(section, name)
    if entry.option and section.kind != entry.option:
        union = _sections(TrainConfig.model_fields[entry.path[0]].annotation)
        section = next(one() for one in union if one.model_fields["kind"].default == entry.option)
    value = getattr(section, last)
    return "\n".join(value) if entry.kind == "lines" else value


def read(listed: Sequence[Entry], given: Sequence[Any], standard: TrainConfig) -> dict[str, Any]:
    """The partial settings that the form asks for: only what differs from the standard."""
    chosen = {entry.path[0]: value for entry, value in zip(listed, given, strict=True) if entry.path[-1] == "kind"}
    found: dict[str, Any] = {}
    for entry, value, usual in zip(listed, given, values(listed, standard), strict=True):
        kind = chosen.get(entry.path[0])
        if entry.option and entry.option != kind:
            continue
        if _plain(entry, value) == _plain(entry, usual):
            continue
        *sections, last = entry.path
        place = found
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = _plain(entry, value)
        if kind is not None:
            place["kind"] = kind  # a union's section cannot be told without it
    return found


def _plain(entry: Entry, value: Any) -> Any:  # noqa: ANN401 - a setting of any kind
    match entry.kind:
        case "lines":
            return [line.strip() for line in str(value or "").splitlines() if line.strip()]
        case "whole" if isinstance(value, float) and value.is_integer():
            return int(value)
        case "text":
            return str(value or "").strip()
        case _:
            return value


def build(listed: Sequence[Entry], data: dict[str, Any]) -> TrainConfig:
    """The full config, with settings called by their titles in messages.

    Raises:
        UserError: a value out of bounds, each named.
    """
    try:
        return configs.build(data)
    except UserError as error:
        message = error.message
        for entry in listed:
            message = message.replace(f"{'.'.join(entry.path)}:", f"{entry.title}:")
        for name in ("name", "trigger", "dataset"):
            message = message.replace(f" {name}:", f" {say(title_of(name, TrainConfig.model_fields[name]))}:")
        raise UserError(message, error.remedy) from None


def conflicts(listed: Sequence[Entry], data: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with partial settings, in words, by the id of the widget where it can be corrected."""
    chosen = configs.complete(data)
    wrong = {}
    for path, message in configs.find_errors(data).items():
        place, colon, words = message.partition(": ")
        for entry in listed:
            section = chosen.get(entry.path[0])
            kind = section.get("kind") if isinstance(section, dict) else None
            if ".".join(entry.path) == (path or place) and entry.option in ("", kind):
                wrong[entry.id] = words if colon else message
    return wrong


# Widgets --------------------------------------------------------------------------------------------------------


def widget(listed: Sequence[Entry], path: tuple[str, ...], config: TrainConfig) -> dict[str, Any]:
    """Draw the widget of one setting apart from the form; returns it by its id, for `widgets`."""
    entry = next(entry for entry in listed if entry.path == path)
    return {entry.id: _widget(entry, _shown(entry, config))}


def widgets(listed: Sequence[Entry], config: TrainConfig, apart: Mapping[str, Any]) -> list[Any]:
    """Draw the form; returns the components in the order of the entries, those drawn `apart` among them."""
    inside = [entry for entry in listed if entry.id not in apart]
    made: list[Any] = []
    shown = iter(values(inside, config))
    for group, members in groupby(inside, key=lambda entry: entry.group):
        with gr.Group(elem_classes="section"):
            gr.HTML(f"<h2>{escape(group)}</h2>", padding=True)
            for option, same in groupby(members, key=lambda entry: entry.option):
                made += _row(list(same), shown, option, made)
    drawn = dict(zip((entry.id for entry in inside), made, strict=True)) | dict(apart)
    return [drawn[entry.id] for entry in listed]


def _row(same: list[Entry], shown: Any, option: str, above: list[Any]) -> list[Any]:  # noqa: ANN401 - an iterator
    if not option:
        return [_widget(entry, next(shown)) for entry in same]
    radio = next(one for one in reversed(above) if isinstance(one, gr.Radio))
    with gr.Column(visible=radio.value == option) as column:
        drawn = [_widget(entry, next(shown)) for entry in same]
    radio.change(
        lambda kind: gr.Column(visible=kind == option), radio, column, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    return drawn


def _widget(entry: Entry, value: Any) -> Any:  # noqa: ANN401 - Gradio is untyped
    common = {"label": entry.title, "info": entry.help or None, "elem_id": entry.id, "interactive": True}
    match entry.kind:
        case "flag":
            return gr.Checkbox(value, **common)
        case "choice" if entry.path[-1] == "kind":
            choices = [(say(choice.capitalize()), choice) for choice in entry.choices]
            return gr.Radio(choices, value=value, **common)
        case "choice":
            return gr.Dropdown([(say(choice), choice) for choice in entry.choices], value=value, **common)
        case "whole" | "number":
            return gr.Number(value, **common)  # its bounds are checked by the schema, which names the setting
        case "lines":
            return gr.Textbox(value, lines=3, max_lines=8, **common)
        case _:
            return gr.Textbox(value, max_lines=1, **common)
