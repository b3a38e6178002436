"""Form made from the schema of the settings, and back: a setting is defined once, in the schema, and appears here.

bool -> checkbox, Literal -> dropdown, number -> number, list of texts -> lines, list of whole numbers -> one line,
section -> group, union of sections -> radio with one group for each kind. Values are matched by the path of their
setting. The schema is in English, for files and programs; its titles, help texts and choices are translated here.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer import config as configs
from trainer import schema
from trainer.base_models import MICRO
from trainer.config import TrainConfig, comparison, renames
from trainer.errors import UserError
from trainer.i18n import _
from trainer.schema import SettingError

Kind = Literal["flag", "choice", "whole", "number", "text", "lines", "wholes"]
BASE = ("model", "base")  # chosen above the form
LONGEST = 20_000  # characters of a text
KIND_TITLES = schema.kind_titles(TrainConfig)


@dataclass(frozen=True)
class Entry:
    """One widget: the path of its setting, its title, and its kind.

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
    """Return the widgets for a section and everything in it, groups together."""
    single: list[Entry] = []
    nested: list[Entry] = []
    for name, info in section.model_fields.items():
        here = (*path, name)
        if (not path and name in comparison.ABOUT_THE_RUN) or here == BASE:
            continue
        title = _(title_of(name, info))
        sections = schema.sections(info.annotation)
        if len(sections) == 1:
            nested += entries(sections[0], here, title)
        elif sections:
            kinds = tuple(map(schema.kind_of, sections))
            label = {"adapter": _("Adapter type")}.get(name, title)
            nested.append(Entry((*here, "kind"), "choice", label, "", title, kinds))
            for option_section, kind in zip(sections, kinds, strict=True):
                nested += entries(option_section, here, title, kind)
        else:
            single += _single(here, info, title, group or _("General"), option)
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
        kind = "lines" if get_args(annotation)[0] is str else "wholes"
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
    text = _(info.description or "")
    if low is None or high is None or high > 1000:
        return text
    return f"{text} {_('{low:g} to {high:g}.', low=low, high=high)}"


# Values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """Source of the form's values: a preset, a base, the settings that the user changed, and all values.

    The page holds it beside the values and sends both, so that they belong together in whatever order requests arrive.
    `own` are the changed settings, by the id of their widget, as they were typed.
    """

    preset: str
    base: str
    own: dict[str, Any]
    values: list[Any]


def fill(listed: Sequence[Entry], preset: str, base: str, own: dict[str, Any]) -> Filled:
    """Return the form's values for a preset and a base; what the user changed stays as it was typed.

    If the changes conflict with each other or with the base, the rest of the form shows the preset.
    """
    usual = standard(preset, base)
    try:
        config = configs.build(configs.merge(as_settings(preset, base), partial(listed, own, usual)))
    except UserError:
        config = usual
    return Filled(preset, base, own, _with_own(listed, own, config))


def _with_own(listed: Sequence[Entry], own: dict[str, Any], config: TrainConfig) -> list[Any]:
    """Return the widgets' values for a config, with those that the user changed in place of its own."""
    return [own.get(entry.id, value) for entry, value in zip(listed, values(listed, config), strict=True)]


def changed(listed: Sequence[Entry], filled: Filled, current: Sequence[Any]) -> dict[str, Any]:
    """Return the settings that the user has changed so far, by the id of their widget, as they were typed."""
    own = dict(filled.own)
    for entry, value, before in zip(listed, current, filled.values, strict=True):
        if _plain(entry, value) != _plain(entry, before):
            own[entry.id] = value
    return own


def differences(listed: Sequence[Entry], config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a config that differ from those of its preset and base, by the id of their widget."""
    usual = standard(config.preset, config.model.base)
    kinds = {entry.path[0]: value_of(entry, config) for entry in listed if entry.path[-1] == "kind"}
    return {
        entry.id: value
        for entry, value, before in zip(listed, values(listed, config), values(listed, usual), strict=True)
        if entry.option in ("", kinds.get(entry.path[0])) and _plain(entry, value) != _plain(entry, before)
    }


def partial(listed: Sequence[Entry], own: dict[str, Any], usual: TrainConfig) -> dict[str, Any]:
    """Return changed settings as partial settings, without those that equal the usual ones."""
    return read(listed, _with_own(listed, own, usual), usual)


def own_of(listed: Sequence[Entry], data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings as changed settings; those without a widget or with an unknown choice are left out."""
    own, data = {}, renames.current(data)  # they may have been saved by an earlier version
    for entry in listed:
        value = _lookup(data, entry.path)
        is_other_kind = entry.option and entry.option != _lookup(data, (entry.path[0], "kind"))
        is_unknown = entry.choices and value not in entry.choices
        if value is None or is_other_kind or is_unknown:
            continue
        own[entry.id] = typed(value)
    return own


def _lookup(data: object, path: tuple[str, ...]) -> object:
    """Return the value at a path of nested tables; None if it is not there."""
    for name in path:
        if not isinstance(data, dict):
            return None
        data = data.get(name)
    return data


def standard(preset: str, base: str) -> TrainConfig:
    """Return the config if nothing is changed in the form."""
    return configs.build(as_settings(preset, base))


def as_settings(preset: str, base: str) -> dict[str, Any]:
    """Return the partial settings of a preset and a base, for a run that has no name yet."""
    return {"name": "x", "dataset": "x", "preset": preset, "model": {"base": base or MICRO}}


def values(listed: Sequence[Entry], config: TrainConfig) -> list[Any]:
    """Return the widgets' values for a config."""
    return [value_of(entry, config) for entry in listed]


def value_of(entry: Entry, config: TrainConfig) -> object:
    """Return a widget's value for a config; one of a kind that the config does not have shows its default."""
    *sections, last = entry.path
    section: Any = config
    for name in sections:
        section = getattr(section, name)
    if entry.option and section.kind != entry.option:
        union = schema.sections(TrainConfig.model_fields[entry.path[0]].annotation)
        section = next(option() for option in union if schema.kind_of(option) == entry.option)
    return typed(getattr(section, last))


def typed(value: object) -> object:
    """Return a setting's value as its widget has it."""
    if not isinstance(value, tuple | list):
        return value
    return (", " if all(isinstance(item, int) for item in value) else "\n").join(map(str, value))


def read(listed: Sequence[Entry], current: Sequence[Any], standard: TrainConfig) -> dict[str, Any]:
    """Return the partial settings that the form asks for: only what differs from the standard."""
    kinds = {entry.path[0]: value for entry, value in zip(listed, current, strict=True) if entry.path[-1] == "kind"}
    data: dict[str, Any] = {}
    for entry, value, usual in zip(listed, current, values(listed, standard), strict=True):
        kind = kinds.get(entry.path[0])
        if entry.option and entry.option != kind:
            continue
        if _plain(entry, value) == _plain(entry, usual):
            continue
        *sections, last = entry.path
        table = data
        for name in sections:
            table = table.setdefault(name, {})
        table[last] = _plain(entry, value)
        if kind is not None:
            table["kind"] = kind  # the section of a union is identified by it
    return data


def _plain(entry: Entry, value: object) -> object:
    match entry.kind:
        case "lines":
            return [line.strip() for line in str(value or "").splitlines() if line.strip()]
        case "wholes":
            return [int(word) if word.isdecimal() else word for word in re.split(r"[\s,;]+", str(value or "")) if word]
        case "whole" if isinstance(value, float) and value.is_integer():
            return int(value)
        case "text":
            return str(value or "").strip()
        case _:
            return value


def titled(entry: Entry) -> list[tuple[str, str]]:
    """Return the choices of a setting with their titles."""
    if entry.path[-1] == "kind":
        return [(_(KIND_TITLES[choice]), choice) for choice in entry.choices]
    return [(_(choice), choice) for choice in entry.choices]


def parsed(entry: Entry, value: object) -> object:
    """Return a value as the widget has it, from what a browser reads there: choices by title, numbers as text.

    Raises:
        UserError: it is of another kind; its bounds are checked with the other settings.
    """
    text, is_text = str(value), isinstance(value, str) and len(value) <= LONGEST
    match entry.kind:
        case "flag" if isinstance(value, bool):
            return value
        case "choice" if is_text and text in dict(titled(entry)):
            return dict(titled(entry))[text]
        case "whole" | "number" if is_text and not text:
            return None
        case "whole" | "number" if is_text:
            with suppress(ValueError):
                if isfinite(number := float(text)):
                    return number
        case "text" | "lines" | "wholes" if is_text:
            return text
    raise UserError("{title}: this value cannot be stored.", "Type another one.", title=entry.title)


def build(listed: Sequence[Entry], data: dict[str, Any]) -> TrainConfig:
    """Build the full config; messages call settings by their titles.

    Raises:
        UserError: values are out of bounds; each is named.
    """
    try:
        return configs.build(data)
    except UserError as error:
        message = error.message
        for entry in listed:
            message = message.replace(f"{'.'.join(entry.path)}:", f"{entry.title}:")
        for name in ("name", "trigger", "dataset"):
            message = message.replace(f" {name}:", f" {_(title_of(name, TrainConfig.model_fields[name]))}:")
        raise UserError(message, error.remedy) from None


def conflicts(listed: Sequence[Entry], data: dict[str, Any]) -> dict[str, SettingError]:
    """Return the errors in partial settings, by the id of the widget where each can be corrected."""
    resolved = configs.complete(data)
    errors = {}
    for path, error in configs.find_errors(data).items():
        for entry in listed:
            kind = _lookup(resolved, (entry.path[0], "kind"))
            if ".".join(entry.path) == path and entry.option in ("", kind):
                errors[entry.id] = replace(error, message=error.message.removeprefix(f"{path}: "))
    return errors


def notes(listed: Sequence[Entry], own: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return what `form_notes.js` shows at the fields: which are changed, and which conflict.

    Args:
        listed: the widgets.
        own: the settings that the user changed, by widget id.
        data: everything that the form asks for, as partial settings.
    """
    usual = standard(data["preset"], data["model"]["base"])
    changed = {}
    for entry, value, before in zip(listed, _with_own(listed, own, usual), values(listed, usual), strict=True):
        if _plain(entry, value) != _plain(entry, before):
            changed[entry.id] = _("Default: {value}", value=comparison.shown(before) or _("empty"))
    errors = {}
    for field, error in conflicts(listed, data).items():
        fix = "" if error.fix is None else _("Set to {value}", value=comparison.shown(error.fix) or _("empty"))
        errors[field] = {"reason": error.message, "fix": fix}
    return {
        "changed": changed,
        "conflicts": errors,
        "words": {"reset": _("Reset"), "none": _("No setting matches.")},
    }
