"""All settings of a run in one schema: the TOML file, the form, the checks, the docs and the record come from here.

A TOML may be partial; what it leaves out comes from the preset (a partial TOML too), then from the defaults below.
"""

import difflib
import json
import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import tomlkit
from pydantic import Field, ValidationError, field_validator, model_validator

from trainer import paths
from trainer.base_models import MICRO, MICRO_FOLDER, detect
from trainer.base_models.registry import DEFAULT, FAMILIES, FamilyName
from trainer.base_models.spec import PredictionType
from trainer.config.adapter import ExportConfig, LoHa, LoKr, Lora
from trainer.config.training import (
    BASIC,
    CaptionsConfig,
    ObjectiveConfig,
    PicturesConfig,
    PreservationConfig,
    PriorConfig,
    TrainingConfig,
)
from trainer.errors import UserError
from trainer.i18n import say
from trainer.optim.optimizers import Adafactor, AdamW, AdamW8bit, Lion, Prodigy, ScheduleFree
from trainer.optim.schedules import Constant, Cosine, Linear, Stable
from trainer.schema import Section, sections, setting_paths, what_is_wrong

PRESETS = Path(__file__).parent / "presets"
# What a union is when nobody says so; a preset or a file may say otherwise.
KINDS = {"adapter": {"kind": "lora"}, "optimizer": {"kind": "adamw"}, "schedule": {"kind": "cosine"}}
Settings = TypeVar("Settings", bound=Section)


class ModelConfig(Section):
    """The base model, which stays frozen."""

    family: Literal["auto", FamilyName] = Field(
        "auto", title="Family", description="Architecture of the base model; auto reads it from the model."
    )
    base: str = Field(
        MICRO, min_length=1, max_length=1000, title="Base model", json_schema_extra=BASIC,
        description="'micro' (built in, portraits, runs anywhere), or a Stable Diffusion 1.x, 2.x or XL model: its "
        "folder in diffusers form, its .safetensors file, or its name on the Hugging Face hub (owner/name).",
    )  # fmt: skip
    revision: str = Field(
        "", max_length=100, title="Revision",
        description="Of a base from the hub: branch, tag or commit; empty = the newest, which is written down.",
    )  # fmt: skip
    objective: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", title="Objective",
        description="What the base predicts; auto reads it from the model, or asks it where the model does not say.",
    )  # fmt: skip
    weights: Literal["full", "int8", "nf4"] = Field(
        "full", title="Weights",
        description="Of the frozen base while training: int8 and nf4 keep its attention in 8 or 4 bits, for small "
        "cards; a little less exact, slower, and they need bitsandbytes.",
    )  # fmt: skip


class PreviewConfig(Section):
    """Pictures made while training, to look at its progress."""

    prompts: tuple[str, ...] = Field(
        (), max_length=16, title="Preview prompts", json_schema_extra=BASIC,
        description="One a line; none = three captions of the data set.",
    )  # fmt: skip
    negative: str = Field(
        "", max_length=2000, title="Negative prompt", description="What the previews should not show."
    )
    every: int = Field(100, ge=0, le=1_000_000, title="Preview every", description="Steps between previews; 0 = none.")
    strength: float = Field(1.0, ge=0, le=2, title="Strength", description="Of the adapter in previews.")
    guidance: float = Field(
        7.5, ge=1, le=30, title="Guidance", description="How closely previews follow the prompt (Ho & Salimans 2022)."
    )
    steps: int = Field(25, ge=1, le=200, title="Sampling steps", description="Denoising steps of a preview.")
    seed: int = Field(
        1, ge=0, le=2**31 - 1, title="Preview seed", description="The same for every step, so that previews compare."
    )


class CheckpointConfig(Section):
    """Settings of checkpoints, which a run is resumed from."""

    every: int = Field(100, ge=1, le=1_000_000, title="Checkpoint every", description="Steps between checkpoints.")
    minutes: float = Field(
        5.0, gt=0, le=1440, title="Checkpoint minutes", description="A checkpoint is also made after this many minutes."
    )
    keep: int = Field(
        5, ge=2, le=1000, title="Checkpoints kept", description="The newest that are kept; older ones are removed."
    )


class Record(Section):
    """Filled by the worker before the first step: what else is needed to repeat the run."""

    program: str = Field("", description="Version of Limner.")
    dataset_sha256: str = Field("", description="Over the pictures' bytes and captions.")
    base_sha256: str = Field("", description="Over the weights of the base model's denoiser.")
    objective: str = Field("", description="How it was found what the base predicts.")
    packages: dict[str, str] = Field(default_factory=dict, description="Versions of the packages that compute.")
    device: str = Field("", description="What it was trained on.")
    devices: int = Field(0, ge=0, description="How many devices or processes shared each batch.")
    restarts: int = Field(0, ge=0, description="How often the instability guard halved the learning rate.")


class TrainConfig(Section):
    """One training run."""

    task: Literal["train"] = Field("train", description="Kind of task.")
    name: str = Field(
        min_length=1, max_length=64, title="Name", json_schema_extra=BASIC,
        description="Of the run and of its adapter file.",
    )  # fmt: skip
    dataset: str = Field(
        min_length=1, max_length=1000, title="Data set", json_schema_extra=BASIC,
        description="Name of a folder under datasets/, or the path of a folder.",
    )  # fmt: skip
    preset: Literal["character", "style"] = Field(
        "character", title="What are you teaching?", json_schema_extra=BASIC,
        description="Sets what is not set otherwise.",
    )  # fmt: skip
    trigger: str = Field(
        "", max_length=100, title="Trigger word", json_schema_extra=BASIC,
        description="Word that calls the subject; it is put in front of each caption that lacks it.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="All that is random follows from it.")
    model: ModelConfig = Field(default_factory=ModelConfig, title="Base model")
    adapter: Lora | LoHa | LoKr = Field(default_factory=Lora, discriminator="kind", title="Adapter")
    optimizer: AdamW | AdamW8bit | Adafactor | Lion | Prodigy | ScheduleFree = Field(
        default_factory=AdamW, discriminator="kind", title="Optimizer"
    )
    schedule: Constant | Cosine | Linear | Stable = Field(
        default_factory=Cosine, discriminator="kind", title="Schedule"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, title="Training")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, title="Objective")
    captions: CaptionsConfig = Field(default_factory=CaptionsConfig, title="Captions")
    pictures: PicturesConfig = Field(default_factory=PicturesConfig, title="Pictures")
    prior: PriorConfig = Field(default_factory=PriorConfig, title="Prior pictures")
    preservation: PreservationConfig = Field(default_factory=PreservationConfig, title="Preservation")
    preview: PreviewConfig = Field(default_factory=PreviewConfig, title="Previews")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, title="Checkpoints")
    export: ExportConfig = Field(default_factory=ExportConfig, title="File")
    record: Record = Field(default_factory=Record)

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not paths.NAME.fullmatch(name):
            raise ValueError(say("use letters, digits, '-' and '_' only, at most 64"))
        return name

    @field_validator("dataset", "trigger")
    @classmethod
    def _printable(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError(say("has characters that cannot be printed"))
        return text.strip()

    @model_validator(mode="after")
    def _micro_is_small(self) -> "TrainConfig":
        side = micro_side()
        if self.model.base == MICRO and self.training.resolution != side:
            raise ValueError(say(
                "training.resolution: the built-in base micro draws {side} x {side} pixels; set it to {side}", side=side
            ))  # fmt: skip
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> "TrainConfig":
        kind = self.optimizer.kind
        if kind == "schedule-free" and self.schedule.kind != "constant":
            raise ValueError(say("schedule.kind: schedule-free AdamW needs the constant schedule"))
        if kind == "schedule-free" and self.training.ema:
            raise ValueError(say("training.ema: schedule-free AdamW averages already; set it to 0"))
        if kind == "prodigy" and self.training.text_encoder and self.training.text_encoder_factor != 1:
            raise ValueError(say("training.text_encoder_factor: Prodigy has one rate for all parts; set it to 1"))
        if kind == "prodigy" and isinstance(self.adapter, Lora) and self.adapter.up_factor != 1:
            raise ValueError(say("adapter.up_factor: Prodigy has one rate for all parts; set it to 1"))
        if self.model.weights != "full" and not (isinstance(self.adapter, Lora) and not self.adapter.dora):
            raise ValueError(
                say("model.weights: LoHa, LoKr and DoRA need the base's weights as they are; set it to full")
            )
        if isinstance(self.adapter, Lora) and self.adapter.dora and self.preview.strength != 1:
            raise ValueError(say("preview.strength: DoRA previews can only be at strength 1"))
        return self


def preset(
    kind: str, base: str, *, family: str = "auto", revision: str = "", objective: str = "auto"
) -> dict[str, Any]:
    """The partial settings of a preset for a base model, which is looked at to tell its family.

    A base that is not here yet is taken as `family`, or else as Stable Diffusion 1.x; the worker warns of pictures that
    are too small for the base that it then gets.
    """
    if base == MICRO:
        return merged({"training": {"resolution": micro_side()}}, _preset(MICRO, kind))
    found = detect.glance(base, revision)
    if found:
        family = found.family
    if found and objective == "auto":
        # A base that does not tell is taken as the larger variant, until the worker has probed it.
        objective = found.prediction_type or "v_prediction"
    spec = FAMILIES.get(cast(FamilyName, family), FAMILIES[DEFAULT])
    variant = spec.variants.get(cast(PredictionType, objective), spec.variants["epsilon"])
    return merged(_preset(spec.name, kind), {"training": {"resolution": variant.resolution}})


def _preset(base: str, kind: str) -> dict[str, Any]:
    path = PRESETS / f"{base}-{kind}.toml"
    return tomllib.loads(path.read_text()) if path.is_file() else {}


@cache
def micro_side() -> int:
    """Side in pixels of the pictures that the built-in base draws."""
    folder = MICRO_FOLDER
    latents = json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
    levels = json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"]
    return int(latents * 2 ** (len(levels) - 1))


def build(data: dict[str, Any]) -> TrainConfig:
    """A full config from partial settings: defaults, then the preset, then `data`.

    Raises:
        UserError: an unknown setting or a value out of bounds, each named.
    """
    return check(TrainConfig, resolved(data))


def resolved(data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings with the preset and the usual kinds filled in, unchecked."""
    model = data.get("model", {})
    told = {key: str(value) for key, value in model.items()} if isinstance(model, dict) else {}
    known = {key: told[key] for key in ("family", "revision", "objective") if key in told}
    under = preset(str(data.get("preset", "character")), told.get("base", MICRO), **known)
    return merged(merged(KINDS, _at_one_rate(_at_batch(under, data), data)), data)


def problems(data: dict[str, Any]) -> dict[str, str]:
    """Return a sentence for each setting that `build` would refuse, by its path; {} if there is none."""
    try:
        TrainConfig.model_validate(resolved(data))
    except ValidationError as error:
        return messages(error)
    return {}


def _at_batch(under: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """A preset with its learning rate brought to the batch that the settings ask for, by the square root of the ratio.

    Malladi et al. 2022, https://arxiv.org/abs/2205.10287: so Adam's steps stay alike. A rate that is set,
    or another optimizer's, stays as it is.
    """
    usual, wanted = under.get("training", {}), data.get("training", {})
    optimizer = data.get("optimizer", {})
    if not isinstance(wanted, dict) or not isinstance(optimizer, dict) or optimizer.keys() & {"learning_rate", "kind"}:
        return under
    ratio = 1.0
    for name in ("batch_size", "accumulation"):
        before = usual.get(name, TrainingConfig.model_fields[name].default)
        after = wanted.get(name, before)
        ratio *= after / before if isinstance(after, int) and after > 0 else 1
    rate = under.get("optimizer", {}).get("learning_rate")
    if rate is None or ratio == 1:
        return under
    return merged(under, {"optimizer": {"learning_rate": float(f"{rate * math.sqrt(ratio):.3g}")}})


def _at_one_rate(under: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """A preset without a rate of its own for the text encoder where the settings ask for Prodigy, which has but one."""
    optimizer = data.get("optimizer", {})
    prodigy = isinstance(optimizer, dict) and optimizer.get("kind") == "prodigy"
    return merged(under, {"training": {"text_encoder_factor": 1.0}}) if prodigy else under


def check(kind: type[Settings], data: dict[str, Any]) -> Settings:
    """Settings of some kind from plain data.

    Raises:
        UserError: an unknown setting or a value out of bounds, each named.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(
            "These settings cannot be used: {reasons}.",
            "Correct them and try again.",
            reasons="; ".join(messages(error).values()),
        ) from None


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings laid over others; a section of another kind replaces the one below it."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if (
            isinstance(below, dict)
            and isinstance(value, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def messages(error: ValidationError) -> dict[str, str]:
    """One sentence for each wrong setting, by its path (`train.steps`), with its nearest real name if unknown."""
    found: dict[str, str] = {}
    for one in error.errors():
        path = ".".join(str(part) for place, part in enumerate(one["loc"]) if place != 1 or part not in _kinds())
        if one["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path, setting_paths(TrainConfig), n=1)
            known = say("{path} is not a setting (did you mean {near}?)", path=path, near=near[0]) if near else ""
            found[path] = known or say("{path} is not a setting", path=path)
        elif one["type"] == "missing":
            found[path] = say("{path} is missing", path=path)
        else:
            text = what_is_wrong(one)
            found[path] = f"{path}: {text}" if path else text
    return found


@cache
def _kinds() -> set[str]:
    unions = (sections(info.annotation) for info in TrainConfig.model_fields.values() if info.discriminator)
    return {str(one.model_fields["kind"].default) for kinds in unions for one in kinds}


def load(path: Path) -> TrainConfig:
    """Read a config file, full or partial.

    Raises:
        UserError: no such file, no TOML, unknown settings or values out of bounds.
    """
    return build(load_partial(path))


def load_partial(path: Path) -> dict[str, Any]:
    """Read a config file as it stands, unchecked."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise UserError("{name} is a folder.", "Give the path of a TOML file.", name=path.name) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            "{name} is not a TOML file: {error}.", "Correct that line and try again.", name=path.name, error=error
        ) from None


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Partial settings with `key.path=value` assignments applied; a value that is no TOML is taken as text."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UserError("{assignment!r} is no assignment.", "Write it as key.path=value.", assignment=assignment)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *sections, last = path.split(".")
        nested: dict[str, Any] = {last: value}
        for section in reversed(sections):
            nested = {section: nested}
        data = merged(data, nested)
    return data


def dump(config: Section) -> str:
    """The TOML text of a config, every value written out."""
    return tomlkit.dumps(config.model_dump(mode="json"))
