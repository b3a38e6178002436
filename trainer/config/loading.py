"""Read, complete, check and write settings.

A TOML file may be partial; what it leaves out comes from the preset (also a partial TOML file), then from the defaults
of the schema.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar, cast, get_args

import tomlkit
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer import foreign_text, paths
from trainer.base_models import MICRO, detect
from trainer.base_models.registry import DEFAULT, FAMILIES, FamilyName
from trainer.base_models.spec import PredictionType
from trainer.config import renames, subject_lines
from trainer.config.run_config import Preset, TrainConfig, micro_resolution
from trainer.config.training import TrainingConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.optim.optimizers import ROWS
from trainer.schema import Conflict, Section, SettingError, describe_error, kind_of, sections, setting_paths

PRESETS = Path(__file__).parent / "presets"
# Default kinds of the unions; a preset or a file may choose others.
KINDS = {"adapter": {"kind": "lora"}, "optimizer": {"kind": "adamw"}, "schedule": {"kind": "cosine"}}
Settings = TypeVar("Settings", bound=Section)


def _find_files() -> dict[str, dict[str, str]]:
    files: dict[str, dict[str, str]] = {}
    for section, info in TrainConfig.model_fields.items():
        for kind in sections(info.annotation):
            for name, setting in kind.model_fields.items():
                for role in setting.metadata:
                    if isinstance(role, str):
                        files.setdefault(section, {})[name] = role
    return files


FILES = _find_files()  # settings that name files or datasets, with what each names, by section


def preset(
    kind: str, base: str, *, family: str = "auto", revision: str = "", prediction_type: str = "auto"
) -> dict[str, Any]:
    """Return the partial settings of a preset for a base model, whose family is detected.

    A base model that is not downloaded yet is taken as `family`, or else as Stable Diffusion 1.x; the worker warns if
    the images are too small for the actual one.
    """
    if base == MICRO:
        return merge({"training": {"resolution": micro_resolution()}}, _read_preset(MICRO, kind))
    facts = detect.glance(base, revision)
    if facts:
        family = facts.family
    if facts and prediction_type == "auto":
        # A model without a prediction type is taken as the larger variant, until the worker has probed it.
        prediction_type = facts.prediction_type or "v_prediction"
    spec = FAMILIES.get(cast(FamilyName, family), FAMILIES[DEFAULT])
    side = spec.variants.get(cast(PredictionType, prediction_type), spec.variants[spec.first])
    suited: dict[str, Any] = {"training": {"resolution": side}}
    if facts and facts.clip_skip > 1:
        suited["model"] = {"clip_skip": facts.clip_skip}
    if facts and facts.few_step:
        suited["preview"] = {"steps": facts.few_step.steps, "guidance": facts.few_step.guidance}
    return merge(_read_preset(spec.name, kind), suited)


def _read_preset(base: str, kind: str) -> dict[str, Any]:
    """Return what all families share in a preset, if they do, with what a family's own file changes."""
    settings: dict[str, Any] = {}
    if kind in get_args(Preset):  # a config may say anything, such as a path
        for name in (kind, f"{base}-{kind}"):
            path = PRESETS / f"{name}.toml"
            if path.is_file():
                settings = merge(settings, foreign_text.read_toml(path))
    return settings


def build(data: dict[str, Any]) -> TrainConfig:
    """Return a full config from partial settings: defaults, then the preset, then `data`.

    Raises:
        UserError: an unknown setting or a value out of bounds, each named.
    """
    return check(TrainConfig, complete(data))


def complete(data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings completed from the preset and the default kinds, unchecked.

    Those of a run that has begun are complete, but for settings that came later: it goes on without them.
    """
    data = renames.current(data)
    for section, names in FILES.items():
        values = data.get(section)
        if isinstance(values, dict):
            # Windows copies paths in quotation marks.
            typed = {key: paths.unquoted(values[key]) for key in names if isinstance(values.get(key), str)}
            data = data | {section: values | typed}
    model = data.get("model")
    model = {key: str(value) for key, value in model.items()} if isinstance(model, dict) else {}
    known = {key: model[key] for key in ("family", "revision", "prediction_type") if key in model}
    base: dict[str, Any] = {}
    if not data.get("record"):
        base = preset(str(data.get("preset", "character")), model.get("base", MICRO), **known)
    base = _with_one_rate(_with_batch_rate(base, data), data)
    return merge(merge(KINDS, base), data)


def find_errors(data: dict[str, Any]) -> dict[str, SettingError]:
    """Return what is wrong with each setting that `build` would refuse, by its path; {} if there is none."""
    try:
        TrainConfig.model_validate(complete(data))
    except ValidationError as error:
        return _errors(error)
    return {}


def _with_batch_rate(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return a preset with its learning rate scaled to the batch that the settings ask for, by the square root.

    Malladi et al. 2022, https://arxiv.org/abs/2205.10287: so Adam's steps stay alike. A rate that the user sets, or
    another optimizer's, stays as it is, and so does plain LoRA's: kohya's scripts do not scale it.
    """
    usual, requested = base.get("training", {}), data.get("training", {})
    optimizer = data.get("optimizer", {})
    if not isinstance(requested, dict) or not isinstance(optimizer, dict):
        return base
    if "learning_rate" in optimizer or "kind" in optimizer or data.get("preset") == "plain":
        return base
    ratio = 1.0
    for name in ("batch_size", "gradient_accumulation"):
        before = usual.get(name, TrainingConfig.model_fields[name].default)
        after = requested.get(name, before)
        if isinstance(after, int) and after > 0:
            ratio *= after / before
    rate = base.get("optimizer", {}).get("learning_rate")
    if rate is None or ratio == 1:
        return base
    return merge(base, {"optimizer": {"learning_rate": float(f"{rate * math.sqrt(ratio):.3g}")}})


def _with_one_rate(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return a preset without a rate of its own for the text encoder if the optimizer finds one rate for all parts."""
    optimizer = data.get("optimizer", {})
    if not isinstance(optimizer, dict):
        return base
    row = ROWS.get(str(optimizer.get("kind")))
    if row and row.finds_rate:
        return merge(base, {"training": {"text_encoder_lr_factor": 1.0}})
    return base


def check(kind: type[Settings], data: dict[str, Any]) -> Settings:
    """Return settings of some kind from plain data.

    Raises:
        UserError: an unknown setting or a value out of bounds, each named.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(
            "These settings are not valid: {reasons}.",
            "Correct them and try again.",
            reasons="; ".join(error_messages(error).values()),
        ) from None


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings with others laid over them; a section of another kind replaces the one below it."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and _is_same_kind(below, value):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def _is_same_kind(section: dict[str, Any], changes: dict[str, Any]) -> bool:
    return "kind" not in changes or bool(changes["kind"] == section.get("kind"))


def error_messages(error: ValidationError) -> dict[str, str]:
    """Return a sentence for each invalid setting, by its path (`train.steps`)."""
    return {path: setting_error.message for path, setting_error in _errors(error).items()}


def _errors(error: ValidationError) -> dict[str, SettingError]:
    errors: dict[str, SettingError] = {}
    for details in error.errors():
        location = list(details["loc"])
        if len(location) > 1 and location[1] in _kinds():  # the chosen kind of a union is not a part of the path
            del location[1]
        conflict = details.get("ctx", {}).get("error")
        fix = None
        if isinstance(conflict, Conflict):
            location.append(conflict.path)
            fix = conflict.fix
        path = ".".join(part for part in location if isinstance(part, str))  # an item's error is its list's
        errors[path] = SettingError(_error_message(path, details), fix)
    return errors


def _error_message(path: str, details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return _("{path} is missing", path=path)
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, setting_paths(TrainConfig), n=1)
        if near:
            return _("{path} is not a setting (did you mean {near}?)", path=path, near=near[0])
        return _("{path} is not a setting", path=path)
    text = describe_error(details)
    return f"{path}: {text}" if path else text


@cache
def _kinds() -> set[str]:
    kinds: set[str] = set()
    for info in TrainConfig.model_fields.values():
        if info.discriminator:
            kinds.update(map(kind_of, sections(info.annotation)))
    return kinds


def load(path: Path) -> TrainConfig:
    """Read a config file, full or partial.

    Raises:
        UserError: no such file, not TOML, unknown settings or values out of bounds.
    """
    return build(load_partial(path))


def load_partial(path: Path) -> dict[str, Any]:
    """Read a config file as it stands, unchecked.

    Raises:
        UserError: no such file, or not TOML.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise UserError("{name} is a folder.", "Give the path of a TOML file.", name=path.name) from None
    except UnicodeDecodeError as error:
        raise _not_toml(path.read_text(encoding="utf-8", errors="replace"), path.name, error) from None


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the partial settings in a TOML text, unchecked; messages call it by its name.

    Raises:
        UserError: not TOML.
    """
    try:
        return renames.current(foreign_text.parse_toml(text))
    except foreign_text.ForeignTextError as error:
        raise _not_toml(text, name, error) from None


def _not_toml(text: str, name: str, error: Exception) -> UserError:
    remedy = _("Correct that line and try again.")
    if "\\" in text:
        remedy = _("Write paths with backslashes in single quotes: base = 'C:\\models\\base.safetensors'.")
    return UserError("{name} is not a TOML file: {error}.", remedy, name=name, error=error)


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return partial settings with `key.path=value` assignments applied; a value that is not TOML is taken as text.

    Raises:
        UserError: something that is not an assignment.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UserError("{assignment!r} is not an assignment.", "Write key.path=value.", assignment=assignment)
        try:
            value = foreign_text.parse_toml(f"value = {text}")["value"]
        except foreign_text.ForeignTextError:
            value = text
        data = merge(data, renames.current(nested({path: value})))
    return data


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


def dump(config: Section) -> str:
    """Return the TOML text of a config, every value written out."""
    return tomlkit.dumps(config.model_dump(mode="json"))


def with_paths(
    config: TrainConfig, *, base: Callable[[str], str], file: Callable[[str], str], dataset: Callable[[str], str]
) -> TrainConfig:
    """Return a config whose base model, other files and datasets, by name or path, are replaced by these functions."""
    others = (
        replace(subject, dataset=dataset(subject.dataset), regularization=dataset(subject.regularization))
        for subject in config.taught[1:]
    )
    roles = {"base": base, "file": file, "dataset": dataset}
    update: dict[str, Any] = {"dataset": dataset(config.dataset), "subjects": tuple(map(subject_lines.write, others))}
    for section, names in FILES.items():
        values = getattr(config, section)
        changes = {name: roles[names[name]](value) for name, value in values.model_dump(include=set(names)).items()}
        update[section] = values.model_copy(update=changes)
    return config.model_copy(update=update)


def with_files_of(config: TrainConfig, other: TrainConfig) -> TrainConfig:
    """Return a config with the files and the first dataset of another one."""
    update: dict[str, Any] = {"dataset": other.dataset}
    for section, names in FILES.items():
        values = getattr(other, section).model_dump(include=set(names))
        update[section] = getattr(config, section).model_copy(update=values)
    return config.model_copy(update=update)


def without_paths(config: TrainConfig) -> TrainConfig:
    """Return a config as it may be published: only the last part of each path, of whatever system it came from."""

    def published_base(base: str) -> str:
        return base if detect.is_hub_name(base) else _last_part(base)

    return with_paths(config, base=published_base, file=_last_part, dataset=_last_part)


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name  # which splits at slashes, too
