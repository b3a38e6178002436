"""A recipe in the making: what a foreign file says, which settings of ours follow, and what cannot be followed.

Each format takes the values that it understands. Whatever nobody took is named in a note, so nothing is lost silently.
"""

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from trainer import config
from trainer.errors import UserError
from trainer.i18n import _

T = TypeVar("T")
Reason = Literal["no counterpart", "of that machine", "decided here", "replaced", "off"]
REASONS: dict[Reason, str] = {
    "no counterpart": _("Limner has no counterpart for: {settings}."),
    "of that machine": _("Names, paths and accounts of that machine or run, not part of a recipe: {settings}."),
    "decided here": _("Without effect on what is learned, or decided by Limner itself: {settings}."),
    "replaced": _("Without effect in the recipe, where other settings take their place: {settings}."),
    "off": _("Off or as usual in the recipe, and not offered by Limner: {settings}."),
}
MAX_DEPTH, MAX_VALUES, MAX_SHOWN = 12, 5000, 60
SECRET = re.compile(r"api_?key|password|secret|credential|(?<!keep_)(hf|face|access)_token", re.IGNORECASE)
EMPTY = (None, "", "None", "none")
# Any base model whose resolution is free: a recipe is checked without knowing its base model.
_CHECKED = {"name": "recipe", "dataset": "recipe", "model": {"base": "limner/any"}}
# What other programs do unless a recipe says otherwise; presets of ours may differ.
NEUTRAL: dict[str, Any] = {
    "adapter.kind": "lora",
    "adapter.blocks": [],
    "schedule.warmup": 0.0,
    "training.batch_size": 1,
    "training.gradient_accumulation": 1,
    "training.max_grad_norm": 1.0,
    "training.further_resolutions": [],
    "training.ema_decay": 0.0,
    "training.spike_threshold": 0.0,
    "training.text_encoder": False,
    "objective.weighting": "none",
    "objective.loss_type": "l2",
    "objective.timestep_sampling": "uniform",
    "objective.min_timestep": 0,
    "objective.max_timestep": 999,
    "objective.noise_offset": 0.0,
    "objective.input_perturbation": 0.0,
    "objective.masked_loss": False,
    "model.clip_skip": 1,
    "captions.dropout": 0.0,
    "captions.trigger_only": 0.0,
    "captions.multiple": False,
    "captions.shuffle": False,
    "captions.tag_dropout": 0.0,
    "captions.keep_tokens": 0,
    "captions.max_token_length": 75,
    "images.flip": False,
    "images.crops": 0,
    "preservation.share": 0.0,
}


@dataclass(frozen=True)
class Recipe:
    """Settings to train with as another file says, ready for `config.build` beside a name, a dataset and a base model.

    `source` is the program. `mapped` holds the settings of ours that follow from each setting of theirs, by path;
    `notes` say what differs and name everything else.
    """

    source: str
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    mapped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Draft:
    """Values of a file, flat, by its own names, and the recipe so far, by our paths.

    `seen` is the number of images in an epoch, each counted as often as it is repeated; 0 = unknown.
    """

    values: dict[str, Any]
    images: int = 0
    seen: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: dict[str, Reason] = field(default_factory=dict)

    def get(self, key: str, read: Callable[[object], T], default: T) -> T:
        """Return a value as `read` reads it, or the default if the file has none; one that is unreadable is noted."""
        raw = self.values.get(key)
        if raw in EMPTY or key in self.left:
            return default
        try:
            return read(raw)
        except (ValueError, TypeError, KeyError, OverflowError):
            self.left[key] = "no counterpart"
            return default

    def set(self, path: str, value: object, *keys: str) -> None:
        """Set one of our settings; it follows from those of their settings that the file has."""
        self.settings[path] = value
        for key in keys:
            if key in self.values:
                self.mapped[key] = tuple(dict.fromkeys((*self.mapped.get(key, ()), path)))

    def leave(self, reason: Reason, *keys: str) -> None:
        """Say why some of their settings are left out."""
        for key in keys:
            if key in self.values:
                self.left[key] = "off" if is_idle(self.values[key]) else reason

    def leave_matching(self, patterns: Mapping[Reason, re.Pattern[str]], but: Container[str] = ()) -> None:
        """Say why settings are left out whose names a pattern matches, the first one that does, `but` for some."""
        for key in self.values:
            reason = next((reason for reason, pattern in patterns.items() if pattern.match(key)), None)
            if reason and key not in but:
                self.leave(reason, key)

    def note(self, sentence: str, /, **values: object) -> None:
        """Add a sentence, which is translated here; with values it is a template, as in `i18n._`."""
        self.notes.append(_(sentence, **values))

    def apply(self, table: Mapping[str, tuple[str, Callable[[object], Any]]]) -> None:
        """Map settings one to one; a reader that returns None says that the value means nothing."""
        for key, (path, read) in table.items():
            value = self.get(key, read, None)
            if value is not None and key not in self.left:
                self.set(path, value, key)

    def finish(self, source: str, usual: Mapping[str, object] | None = None) -> Recipe:
        """Return the recipe, without settings that ours do not allow; `usual` are values that mean nothing there."""
        self._drop_invalid()
        for key in self.values:
            if key not in self.mapped and key not in self.left:
                self.left[key] = self._reason(key, usual or {})
        grouped: dict[Reason, list[str]] = {reason: [] for reason in REASONS}
        for key, reason in self.left.items():
            if key not in self.mapped or reason == "no counterpart":
                setting = f"{key} = {self.values[key]!r}" if reason == "no counterpart" else key
                grouped[reason].append(setting[: MAX_SHOWN + len(key)])
        notes = [
            *self.notes,
            *(_(REASONS[reason], settings=", ".join(names)) for reason, names in grouped.items() if names),
        ]
        return Recipe(source, nested(self.settings), tuple(dict.fromkeys(notes)), dict(self.mapped))

    def _reason(self, key: str, usual: Mapping[str, object]) -> Reason:
        value = self.values[key]
        if is_idle(value) or (key in usual and str(usual[key]).lower() == str(value).lower()):
            return "off"
        return "of that machine" if SECRET.search(key) else "no counterpart"

    def _drop_invalid(self) -> None:
        for _attempt in range(len(self.settings)):
            errors = config.find_errors(config.merge(_CHECKED, nested(self.settings)))
            wrong = {path: error for path, error in errors.items() if path in self.settings}
            if not wrong:
                return
            for path, error in wrong.items():
                value = self.settings.pop(path)
                if error.fix is not None:
                    self.settings[path] = error.fix
                self.note(
                    "Left out, as Limner does not allow it: {path} = {value}. {reason}.",
                    path=path,
                    value=str(value)[:MAX_SHOWN],
                    reason=error.message,
                )


def is_idle(value: object) -> bool:
    """Return True if a value means that something is off."""
    texts = ("false", "none", "0", "0.0", "off", "never", "[]", "{}", "disable", "disabled", "default", "")
    return value in (None, False, 0, [], {}) or (isinstance(value, str) and value.strip().lower() in texts)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return partial settings from values by path."""
    result: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, last = path.split(".")
        section = result
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return result


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables and lists of tables by dotted keys.

    Raises:
        UserError: they are too deep or too many for a recipe.
    """
    result: dict[str, Any] = {}
    _flatten("", data, 0, result)
    return result


def _flatten(key: str, value: object, depth: int, result: dict[str, Any]) -> None:
    if depth > MAX_DEPTH or len(result) > MAX_VALUES:
        raise UserError("The file is too large or too deeply nested for a recipe.", "Give a settings file.")
    below: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        below = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        below = enumerate(value)
    if not below:
        result[key] = value
    for name, item in below:
        _flatten(f"{key}.{name}" if key else str(name), item, depth + 1, result)


# Readers of values. Each raises ValueError, or returns None for a value that means nothing.


def number(value: object) -> float:
    """Read a finite number; YAML takes `1e-4` as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError("not finite")
    return result


def whole(value: object) -> int:
    """Read a whole number, also one written as 4.0."""
    result = number(value)
    if not result.is_integer():
        raise ValueError("not a whole number")
    return int(result)


def positive(value: object) -> int | None:
    """Read a whole number above 0; 0 and less mean that something is off."""
    result = whole(value)
    return result if result > 0 else None


def flag(value: object) -> bool:
    """Read a boolean, also one written as text."""
    words = {"true": True, "false": False, "1": True, "0": False}
    return words[str(value).strip().lower()]


def text(value: object) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value.strip()


def choice(options: Mapping[str, T]) -> Callable[[object], T]:
    """Return a reader of a word, in any case."""
    return lambda value: options[str(value).strip().lower()]


def side(value: object) -> tuple[int, bool]:
    """Read a resolution (512, "512,768", [512, 768]): the side of a square of that area, and whether that is exact.

    Our resolutions are multiples of 64.
    """
    numbers = [int(word) for word in re.findall(r"\d{1,5}", str(value))][:2]
    if not numbers or not all(numbers):
        raise ValueError("not a size")
    area = numbers[0] * numbers[-1]
    exact = math.sqrt(area)
    rounded = max(64, round(exact / 64) * 64)
    return rounded, len(set(numbers)) == 1 and rounded == numbers[0]
