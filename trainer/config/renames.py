"""Names that settings had in version 0.1, and settings that are gone: what is written with them is read as before."""

from pathlib import Path
from typing import Any

from trainer import foreign_text

SECTIONS = {"pictures": "images", "prior": "regularization"}
NAMES = foreign_text.read_toml(Path(__file__).with_suffix(".toml"))
# Settings that are gone, and their values in older files that did nothing. With another one they are refused by name.
GONE: dict[str, dict[str, object]] = {
    "training": {"low_resolution_share": 0.0, "small_share": 0.0, "tensorboard": False}
}
WITHOUT_EFFECT = ("tensorboard",)  # those of them that never changed an adapter: a run that has them goes on
VALUES: dict[str, dict[object, object]] = {
    "captions.max_token_length": {1: 75, 2: 150, 3: 225},  # was a number of chunks
    "objective.loss_type": {"squared": "l2"},
    "training.gradient_checkpointing": {"large": "transformers"},
    "schedule.kind": {"stable": "warmup-stable-decay"},
}


def current(data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings under their current names; an old name beside the current one stays, to be refused."""
    result: dict[str, Any] = {}
    for section, values in data.items():
        name = SECTIONS.get(section, section)
        if name in data and name != section:
            name = section
        result[name] = _current_section(name, values, "record" in data) if isinstance(values, dict) else values
    return result


def _current_section(section: str, values: dict[str, Any], is_run: bool) -> dict[str, Any]:
    result, gone = {}, GONE.get(section, {})
    for old, value in values.items():
        if old in gone and (value == gone[old] or (is_run and old in WITHOUT_EFFECT)):
            continue
        name = NAMES.get(section, {}).get(old, old)
        if name in values:
            name = old
        known = VALUES.get(f"{section}.{name}", {})
        result[name] = known.get(value, value) if isinstance(value, int | str) else value
    return result
