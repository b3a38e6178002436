"""What all settings have in common; knows none of them."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, so that a misspelt name is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4000)


def paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The names of all settings in a section and those inside it, such as `training.steps`."""
    found = []
    for name, info in section.model_fields.items():
        found.append(prefix + name)
        for kind in sections(info.annotation):
            found += paths(kind, f"{prefix}{name}.")
    return found


def sections(annotation: Any) -> list[type[Section]]:  # noqa: ANN401 - any annotation there is
    """The sections that a field's annotation names."""
    parts = getattr(annotation, "__args__", (annotation,))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
