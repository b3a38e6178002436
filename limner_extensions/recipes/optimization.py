"""Optimizers and schedules of other programs, as ours: what all formats have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.values import flag, number, text, words
from trainer.optim.optimizers import ROWS

# What an optimizer does where a recipe says nothing: the defaults of torch, bitsandbytes, lion-pytorch, transformers,
# prodigyopt, schedulefree and pytorch_optimizer.
USUAL: dict[str, dict[str, float]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01},
    "adamw8bit": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01},
    "lion": {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    "adafactor": {"weight_decay": 0.0},
    "prodigy": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
    "prodigy-schedule-free": {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    "schedule-free": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
    "came": {"beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "weight_decay": 0.0},
    "ademamix": {"beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "alpha": 5.0, "weight_decay": 0.0},
    "muon": {"momentum": 0.95, "weight_decay": 0.1},
}
# Arguments that say what ours does anyway.
_AS_OURS: dict[str, dict[str, object]] = {
    "adamw": {"eps": 1e-8, "amsgrad": False},
    "adamw8bit": {"eps": 1e-8, "amsgrad": False},
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    "prodigy": {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True, "d_coef": 1, "eps": 1e-8},
    "prodigy-schedule-free": {"split_groups": False, "d0": 1e-6, "d_coef": 1, "eps": 1e-8, "weight_decay_by_lr": True},
    "schedule-free": {"eps": 1e-8},
    "came": {"weight_decouple": True, "clip_threshold": 1.0, "eps1": 1e-30, "eps2": 1e-16, "ams_bound": False},
    "ademamix": {"weight_decouple": True, "eps": 1e-8, "t_alpha_beta3": None},
    "muon": {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 5, "eps": 1e-7},
}


# Switches of variants that ours does not have, and how they stand for ours, which is also their default.
_SWITCHES: dict[str, dict[str, bool]] = {
    "prodigy-schedule-free": {
        **dict.fromkeys(words("use_schedulefree factored use_stableadamw d_limiter"), True),
        **dict.fromkeys(words("use_bias_correction use_speed use_cautious use_grams use_adopt"), False),
        **dict.fromkeys(words("use_orthograd use_focus"), False),
    },
    "muon": {
        **dict.fromkeys(words("rms_rescaling nesterov"), True),
        **dict.fromkeys(words("normuon_variant low_rank_ortho accelerated_ns orthogonal_gradient"), False),
        **dict.fromkeys(words("approx_mars Simplified_AdEMAMix cautious_wd nnmf_factor"), False),
    },
}


@dataclass(frozen=True)
class Names:
    """Their settings of an optimizer: its kind, learning rates and schedule, and the start of its arguments'."""

    kinds: tuple[str, ...]
    rates: tuple[str, ...]
    schedule: str
    arguments: str


def set_optimizer(draft: Draft, kind: str, names: Names, decay: float | None = None) -> None:
    """Set the optimizer of one of our kinds, with the arguments that a recipe gives it.

    `decay` is its weight decay where the recipe says nothing, if that is not the one of `USUAL`.
    """
    draft.set("optimizer.kind", kind, *names.kinds)
    values = dict(USUAL[kind])
    if decay is not None:
        values["weight_decay"] = decay
    own = [name for name in values if name.startswith("beta")]
    betas = draft.get(f"{names.arguments}betas", lambda value: _numbers(value, len(own)), None) if own else None
    values |= zip(own, betas or (), strict=False)
    for name, value in values.items():
        pair = f"{names.arguments}betas"
        keys = (f"{names.arguments}{name}", *([pair] if betas and name.startswith("beta") else []))
        draft.set(f"optimizer.{name}", draft.get(keys[0], number, value), *keys)
    if kind == "prodigy-schedule-free" and draft.get(f"{names.arguments}split_groups", flag, True):
        draft.note("Prodigy has one rate for all parts here.")
        draft.leave("decided here", f"{names.arguments}split_groups")
    for name, ours in _AS_OURS.get(kind, {}).items():
        key = f"{names.arguments}{name}"
        if str(draft.values.get(key)).lower() == str(ours).lower():
            draft.leave("decided here", key)
    draft.leave("decided here", *(f"{names.arguments}{switch}" for switch in _SWITCHES.get(kind, {})))
    if kind == "prodigy":
        draft.note("Prodigy always corrects its bias and guards the warm-up here.")


def is_variant(draft: Draft, kind: str, names: Names) -> bool:
    """Return True if a recipe asks for a variant of an optimizer that ours is not."""
    switches = _SWITCHES.get(kind, {})
    return any(draft.get(f"{names.arguments}{switch}", flag, ours) != ours for switch, ours in switches.items())


def leave_optimizer(draft: Draft, name: str, names: Names) -> None:
    """Leave optimizer, rate and schedule to the preset: a rate for another optimizer means nothing for ours."""
    draft.leave("no counterpart", *names.kinds, *names.rates, names.schedule)
    draft.note(
        "Limner does not have the optimizer {name}; optimizer and learning rate are left as the preset has them.",
        name=name[:60],
    )


def _numbers(value: object, count: int) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) not in (2, count):
        raise ValueError("not as many numbers")
    return tuple(number(item) for item in value)


@dataclass(frozen=True)
class Schedule:
    """A schedule of ours; `warmup` and `cooldown` are shares of the steps below 1, else steps."""

    kind: str
    warmup: float = 0
    cooldown: float = 0
    min_lr_ratio: float = 0.0
    cycles: int = 1


def read_schedule(draft: Draft, names: Names, kinds: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of a schedule in a recipe, and the kind of ours that it is: constant if none of ours is."""
    name = draft.get(names.schedule, text, "constant").lower()
    if name not in kinds:
        leave_schedule(draft, names.schedule)
    return name, kinds.get(name, "constant")


def leave_schedule(draft: Draft, *keys: str) -> None:
    """Say that Limner does not have the schedule of a recipe."""
    draft.leave("no counterpart", *keys)
    draft.note("Limner does not have this schedule; the learning rate stays constant after its warm-up.")


def set_schedule(draft: Draft, schedule: Schedule, keys: Mapping[str, tuple[str, ...]]) -> None:
    """Set the schedule; `keys` are their settings that each of ours follows from."""
    optimizer = ROWS.get(str(draft.settings.get("optimizer.kind")))
    if optimizer and optimizer.averages and schedule.kind != "constant":
        schedule = Schedule("constant", schedule.warmup)
    values: dict[str, Any] = {"kind": schedule.kind, "warmup": _share(draft, schedule.warmup)}
    if schedule.kind != "constant":
        values["min_lr_ratio"] = schedule.min_lr_ratio
    if schedule.kind == "cosine":
        values["cycles"] = schedule.cycles
    if schedule.kind == "warmup-stable-decay" and schedule.cooldown:
        values["cooldown"] = _share(draft, schedule.cooldown)
    for name, value in values.items():
        if value is not None:
            draft.set(f"schedule.{name}", value, *keys.get(name, ()))
    if None in values.values():
        draft.note(
            "The recipe counts the steps of its warm-up; set schedule.warmup as a share once the steps are known."
        )
        draft.leave("no counterpart", *keys.get("warmup", ()))


def _share(draft: Draft, value: float) -> float | None:
    """Return a share, or a number of steps as a share of all; None if these are not known."""
    if value < 1:
        return float(value)
    steps = int(draft.settings.get("training.steps", 0))
    return min(1.0, value / steps) if steps else None


def set_rates(
    draft: Draft, rate: float, text_rate: float | None, names: tuple[str, ...], text: tuple[str, ...]
) -> None:
    """Set the learning rate, and that of the text encoder as a factor on it; None or 0 = it is not trained.

    Nor is one that takes no adapter.
    """
    if text_rate and draft.spec and not draft.spec.text_encoders:
        draft.note("The text encoder of {family} takes no adapter: it is not trained.", family=draft.spec.title)
        text_rate = None
    draft.set("optimizer.learning_rate", rate, *names)
    trains_text = bool(text_rate)
    draft.set("training.text_encoder", trains_text, *text)
    if text_rate and rate:
        draft.set("training.text_encoder_lr_factor", float(f"{text_rate / rate:.6g}"), *text)
        draft.note("Of the text encoder, Limner adapts the attention only.")
