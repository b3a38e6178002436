"""Table of all settings, for docs/reference.md."""

import json
from typing import get_args

from pydantic import BaseModel

from limner_extensions.recipes import ai_toolkit, kohya, onetrainer
from trainer.config import TrainConfig
from trainer.schema import sections


def table() -> str:
    """Return all settings as a Markdown table: path, default, description with choices."""
    return "\n".join(["| setting | default | what it does |", "| --- | --- | --- |", *_rows(TrainConfig, "")]) + "\n"


def _rows(section: type[BaseModel], prefix: str, *, is_union: bool = False) -> list[str]:
    rows = []
    for name, info in section.model_fields.items():
        kinds = sections(info.annotation)
        if name == "record" or (name == "kind" and not is_union):
            continue
        for kind in kinds:
            rows += _rows(kind, f"{prefix}{name}.", is_union=len(kinds) > 1)
        if not kinds:
            rows.append(_row(section, prefix, name))
    return rows


def _row(section: type[BaseModel], prefix: str, name: str) -> str:
    info = section.model_fields[name]
    default = "" if info.is_required() else f"`{json.dumps(info.default)}`"
    description = info.description or (section.__doc__ or "").split("\n")[0]
    choices = [str(choice) for choice in get_args(info.annotation) if isinstance(choice, str)]
    if len(choices) > 1:
        description += f" ({', '.join(choices)})"
    return f"| `{prefix}{name}` | {default} | {description} |"


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
