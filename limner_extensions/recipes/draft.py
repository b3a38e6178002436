"""A recipe in the making: what a foreign file says, which settings of ours follow, and what cannot be followed.

Each format takes the values that it understands. Whatever nobody took is named in a note, so nothing is lost silently.
"""

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from limner_extensions.recipes.values import EMPTY, T, is_idle
from trainer import config
from trainer.base_models.spec import FamilySpec
from trainer.i18n import _

Reason = Literal["no counterpart", "of that machine", "decided here", "replaced", "off"]
REASONS: dict[Reason, str] = {
    "no counterpart": _("Limner has no counterpart for: {settings}."),
    "of that machine": _("Names, paths and accounts of that machine or run, not part of a recipe: {settings}."),
    "decided here": _("Without effect on what is learned, or decided by Limner itself: {settings}."),
    "replaced": _("Without effect in the recipe, where other settings take their place: {settings}."),
    "off": _("Off or as usual in the recipe, and not offered by Limner: {settings}."),
}
MAX_SHOWN = 60
SECRET = re.compile(r"api_?key|password|secret|credential|(?<!keep_)(hf|face|access)_token", re.IGNORECASE)
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

    `seen` is the number of images in an epoch, each counted as often as it is repeated; 0 = unknown. `spec` is the
    family that the file is for; None if it does not tell.
    """

    values: dict[str, Any]
    images: int = 0
    seen: int = 0
    spec: FamilySpec | None = None
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

    def first(self, *keys: str) -> str:
        """Return the first of some keys that the file has, or the last one if it has none."""
        return next((key for key in keys if key in self.values), keys[-1])

    def set(self, path: str, value: object, *keys: str) -> None:
        """Set one of our settings; it follows from those of their settings that the file has."""
        self.settings[path] = value
        for key in keys:
            if key in self.values:
                self.mapped[key] = tuple(dict.fromkeys((*self.mapped.get(key, ()), path)))

    def take(self, path: str, key: str, read: Callable[[object], object], default: object) -> None:
        """Set one of our settings to theirs as `read` reads it, or to the default if the file has none."""
        self.set(path, self.get(key, read, default), key)

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

    def finish(self, source: str, usual: Mapping[str, str] | None = None) -> Recipe:
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
        return Recipe(source, config.nested(self.settings), tuple(dict.fromkeys(notes)), dict(self.mapped))

    def _reason(self, key: str, usual: Mapping[str, str]) -> Reason:
        value = self.values[key]
        if is_idle(value) or (key in usual and usual[key].lower() == str(value).lower()):
            return "off"
        return "of that machine" if SECRET.search(key) else "no counterpart"

    def _drop_invalid(self) -> None:
        for _attempt in range(len(self.settings)):
            errors = config.find_errors(config.merge(_CHECKED, config.nested(self.settings)))
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
