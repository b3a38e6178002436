"""Tables of all settings, for docs/reference.md and docs/recipes.md."""

import json
from collections import Counter
from typing import Any

from pydantic.fields import FieldInfo

from limner_extensions.recipes import ai_toolkit, kohya, onetrainer
from trainer import config as configs
from trainer.base_models import MICRO
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig, comparison
from trainer.schema import sections
from ui.widgets import settings_form
from ui.widgets.settings_form import Entry

HEAD = "| label | in files | value | what it does |\n| --- | --- | --- | --- |"


def table() -> str:
    """Return all settings in Markdown: a heading and a table for each group of the form, in its order."""
    parts = ["## The run\n", HEAD, *_rows_about_the_run()]
    groups: dict[str, list[Entry]] = {}
    for entry in settings_form.entries():
        groups.setdefault(entry.group, []).append(entry)
    usual = _usual_configs()
    for group, listed in groups.items():
        parts += [f"\n## {group}\n", HEAD]
        settings: dict[tuple[str, ...], list[Entry]] = {}
        for entry in listed:
            settings.setdefault(entry.path, []).append(entry)
        parts += [_row(alike, usual) for alike in settings.values()]
        parts += _kinds(listed)
    return "\n".join(parts) + "\n"


def _rows_about_the_run() -> list[str]:
    rows = []
    for name in comparison.ABOUT_THE_RUN:
        info = TrainConfig.model_fields[name]
        if info.description and name not in ("task", "record"):
            label = settings_form.title_of(name, info)
            rows.append(f"| {label} | `{name}` | {_default(info)} | {info.description} |")
    base = TrainConfig.model_fields["model"].annotation
    (model,) = sections(base)
    return [*rows, f'| Base model | `model.base` | `"micro"` | {model.model_fields["base"].description} |']


def _row(alike: list[Entry], usual: dict[str, TrainConfig]) -> str:
    """Return the row of a setting, which several kinds of an optimizer, say, may have."""
    entry = alike[0]
    description = entry.help
    if entry.choices and entry.path[-1] != "kind":
        description = f"{description} ({', '.join(map(str, entry.choices))})"
    values = {name: settings_form.value_of(entry, config) for name, config in usual.items()}
    return f"| {entry.title} | `{'.'.join(entry.path)}` | {_by_preset(values)} | {description} |"


def _kinds(listed: list[Entry]) -> list[str]:
    """Return a table of the kinds that a group's settings depend on, if they do; with the settings that each has."""
    section, last = listed[0].path[0], listed[0].path[-1]
    if last != "kind":
        return []
    lines = [f"\n| `{section}.kind` | what it is | settings |", "| --- | --- | --- |"]
    for kind in sections(TrainConfig.model_fields[section].annotation):
        fields = {name: info.default for name, info in kind.model_fields.items()}
        name, about = fields.pop("kind"), (kind.__doc__ or "").split("\n")[0]
        lines.append(f"| `{name}` | {about} | {', '.join(f'{field} {_value(own)}' for field, own in fields.items())} |")
    return lines


def _usual_configs() -> dict[str, TrainConfig]:
    """Return the config of each preset for each family, by a short name of both."""
    models = {MICRO: {"base": MICRO}}
    for family, spec in FAMILIES.items():
        models[spec.title.replace("Stable Diffusion", "SD")] = {"base": "owner/name", "family": family}
    named = {}
    for title, model in models.items():
        for preset in ("character", "style"):
            settings = {"name": "x", "dataset": "x", "preset": preset, "model": model}
            config = configs.build(settings)
            detected = config.model.model_copy(update={"family": "auto"})
            named[f"{title}, {preset}"] = config.model_copy(update={"model": detected})
    return named


def _by_preset(values: dict[str, Any]) -> str:
    """Return a setting's values with the presets that have each, the commonest first and without them."""
    presets_by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        presets_by_value.setdefault(_value(value), []).append(name)
    common, *others = sorted(presets_by_value, key=lambda value: -len(presets_by_value[value]))
    return "; ".join([common, *(f"{value} ({_joined(presets_by_value[value])})" for value in others)])


def _joined(names: list[str]) -> str:
    """Return names of presets, those of a family that has both under its name alone."""
    families = Counter(name.split(", ")[0] for name in names)
    both = [family for family, count in families.items() if count == 2]
    single = [name.replace(", ", " ") for name in names if name.split(", ")[0] not in both]
    return ", ".join(both + single)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    return _value(info.default)


def _value(value: object) -> str:
    if isinstance(value, str) and "\n" in value:
        return f"{len(value.splitlines())} lines"
    return f"`{json.dumps(value)}`"


def recipe_table() -> str:
    """Return a Markdown table: our setting, and what it is called in each program."""
    programs = [kohya.DIRECT, onetrainer.DIRECT, ai_toolkit.DIRECT]
    paths = sorted({path for direct in programs for path, _read in direct.values()})
    rows = ["| Limner | sd-scripts | OneTrainer | ai-toolkit |", "| --- | --- | --- | --- |"]
    for path in paths:
        cells = []
        for direct in programs:
            keys = [f"`{key}`".replace(".0.", "[0].") for key, (ours, _read) in direct.items() if ours == path]
            cells.append(", ".join(keys))
        rows.append(f"| `{path}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
