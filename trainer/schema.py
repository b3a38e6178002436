"""Shared base of all settings sections; knows none of them."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

from trainer.i18n import say

# Pydantic tells in English what is wrong with a value, by these kinds and some that our settings do not meet.
_WRONG = {
    "greater_than": say("should be greater than {gt}"),
    "greater_than_equal": say("should be greater than or equal to {ge}"),
    "less_than": say("should be less than {lt}"),
    "less_than_equal": say("should be less than or equal to {le}"),
    "multiple_of": say("should be a multiple of {multiple_of}"),
    "int_type": say("should be a valid integer"),
    "int_parsing": say("should be a valid integer"),
    "int_from_float": say("should be a valid integer, got a number with a fractional part"),
    "float_type": say("should be a valid number"),
    "float_parsing": say("should be a valid number"),
    "finite_number": say("should be a finite number"),
    "bool_type": say("should be a valid boolean"),
    "bool_parsing": say("should be a valid boolean"),
    "string_type": say("should be a valid string"),
    "string_too_short": say("is too short or empty"),
    "string_too_long": say("should have at most {max_length} characters"),
    "too_long": say("should have at most {max_length} items"),
    "tuple_type": say("should be a list"),
    "literal_error": say("should be {expected}"),
}


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, so that a misspelt name is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4000)


def setting_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The names of all settings in a section and those inside it, such as `train.steps`."""
    found = []
    for name, info in section.model_fields.items():
        found.append(prefix + name)
        for kind in sections(info.annotation):
            found += setting_paths(kind, f"{prefix}{name}.")
    return found


def what_is_wrong(error: ErrorDetails) -> str:
    """Translate what pydantic found wrong with a value."""
    if error["type"] not in _WRONG:
        return error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    told: dict[str, Any] = {}
    for name, value in error.get("ctx", {}).items():
        told[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    if "expected" in told:
        told["expected"] = told["expected"].replace(" or ", f" {say('or')} ")
    return _WRONG[error["type"]].format(**told)


def sections(annotation: Any) -> list[type[Section]]:  # noqa: ANN401 - any annotation there is
    """The sections that a field's annotation names."""
    parts = getattr(annotation, "__args__", (annotation,))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
