"""Base class of all settings sections, and functions over their fields; knows none of them."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

from trainer.i18n import _

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
# Texts that name a file, a base model or something else that may be on the hub, or a dataset.
FilePath = Annotated[str, "file"]
HubPath = Annotated[str, "base"]
DatasetPath = Annotated[str, "dataset"]
# Translations of pydantic's messages, by kind of error; the others are not met by our settings.
_ERRORS = {
    "greater_than": _("should be greater than {gt}"),
    "greater_than_equal": _("should be greater than or equal to {ge}"),
    "less_than": _("should be less than {lt}"),
    "less_than_equal": _("should be less than or equal to {le}"),
    "multiple_of": _("should be a multiple of {multiple_of}"),
    "int_type": _("should be a valid integer"),
    "int_parsing": _("should be a valid integer"),
    "int_from_float": _("should be a valid integer, got a number with a fractional part"),
    "float_type": _("should be a valid number"),
    "float_parsing": _("should be a valid number"),
    "finite_number": _("should be a finite number"),
    "bool_type": _("should be a valid boolean"),
    "bool_parsing": _("should be a valid boolean"),
    "string_type": _("should be a valid string"),
    "string_too_short": _("is too short or empty"),
    "string_too_long": _("should have at most {max_length} characters"),
    "too_long": _("should have at most {max_length} items"),
    "tuple_type": _("should be a list"),
    "literal_error": _("should be {expected}"),
}


class Conflict(ValueError):
    """A setting that does not go with others: its path in the section that checks it, the reason, a value that does.

    A section's validator raises it; pydantic hands it on in the error's context.
    """

    def __init__(self, path: str, reason: str, fix: object) -> None:
        super().__init__(reason)
        self.path, self.fix = path, fix


@dataclass(frozen=True)
class SettingError:
    """A sentence about an invalid setting, and the value that corrects it where one follows from the other settings."""

    message: str
    fix: object = None


class Section(BaseModel):
    """Base of all settings: frozen, and strict about unknown keys, so that a misspelled name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4000)


def kind_of(section: type[BaseModel]) -> str:
    """Return the kind of a section that is one of several."""
    return str(section.model_fields["kind"].default)


def kind_titles(section: type[BaseModel]) -> dict[str, str]:
    """Return what a form calls the kinds of a section's settings, such as AdamW 8-bit for `adamw8bit`."""
    alternatives = [kinds for info in section.model_fields.values() if len(kinds := sections(info.annotation)) > 1]
    names = [(kind_of(kind), kind) for kinds in alternatives for kind in kinds]
    return {name: kind.model_config.get("title") or name.capitalize() for name, kind in names}


def setting_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the paths of all settings in a section and those inside it, such as `train.steps`."""
    setting_names = []
    for name, info in section.model_fields.items():
        setting_names.append(prefix + name)
        for kind in sections(info.annotation):
            setting_names += setting_paths(kind, f"{prefix}{name}.")
    return setting_names


def describe_error(error: ErrorDetails) -> str:
    """Translate pydantic's message about an invalid value."""
    if error["type"] not in _ERRORS:
        return error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    values: dict[str, Any] = {}
    for name, value in error.get("ctx", {}).items():
        values[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    if "expected" in values:
        values["expected"] = values["expected"].replace(" or ", f" {_('or')} ")
    return _ERRORS[error["type"]].format(**values)


def sections(annotation: object) -> list[type[Section]]:
    """Return the sections that a field's annotation names."""
    parts = getattr(annotation, "__args__", (annotation,))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
