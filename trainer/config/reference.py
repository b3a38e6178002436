"""The table of all settings that stands in docs/reference.md."""

import json
from typing import get_args

from pydantic import BaseModel

from trainer.config import TrainConfig
from trainer.schema import sections


def table() -> str:
    """All settings as rows of a Markdown table: path, default, bounds, what it does."""
    return "\n".join(["| setting | default | what it does |", "| --- | --- | --- |", *_rows(TrainConfig, "")]) + "\n"


def _rows(section: type[BaseModel], prefix: str, *, choice: bool = False) -> list[str]:
    rows = []
    for name, info in section.model_fields.items():
        kinds = sections(info.annotation)
        if name == "record" or (name == "kind" and not choice):
            continue
        for kind in kinds:
            rows += _rows(kind, f"{prefix}{name}.", choice=len(kinds) > 1)
        if not kinds:
            choices = [str(choice) for choice in get_args(info.annotation) if isinstance(choice, str)]
            default = "" if info.is_required() else f"`{json.dumps(info.default)}`"
            bounds = f" ({', '.join(choices)})" if len(choices) > 1 else ""
            description = info.description or (section.__doc__ or "").split("\n")[0]
            rows.append(f"| `{prefix}{name}` | {default} | {description}{bounds} |")
    return rows
