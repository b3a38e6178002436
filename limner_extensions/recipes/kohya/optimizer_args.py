"""Optimizers, schedules and learning rates in recipes of kohya's scripts.

The meaning was read from kohya-ss/sd-scripts at commit 48d368f: `get_optimizer` and `get_scheduler_fix` in
library/train_util.py, `prepare_optimizer_params` in networks/lora.py.
"""

import ast
import re
from typing import Any

from limner_extensions.recipes import optimization
from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.kohya import network_args
from limner_extensions.recipes.values import flag, is_idle, number, pairs, positive, text
from trainer.i18n import _
from trainer.optim.optimizers import ROWS

KINDS = pairs("""
    adamw=adamw pagedadamw=adamw pagedadamw32bit=adamw adamw8bit=adamw8bit pagedadamw8bit=adamw8bit lion=lion
    lion8bit=lion pagedlion8bit=lion adafactor=adafactor prodigy=prodigy adamwschedulefree=schedule-free
    prodigyplusschedulefree=prodigy-schedule-free schedule-free=schedule-free came=came ademamix=ademamix muon=muon
""")
SCHEDULES = pairs("""
    constant=constant constant_with_warmup=constant cosine=cosine cosine_with_restarts=cosine
    cosine_with_min_lr=cosine linear=linear polynomial=linear warmup_stable_decay=warmup-stable-decay
    warmup-stable-decay=warmup-stable-decay
""")
RATES = ("learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only")
NAMES = optimization.Names(
    ("optimizer_type", "use_8bit_adam", "use_lion_optimizer"), RATES, "lr_scheduler", "optimizer_args."
)
DEFAULT_RATE = 2e-6
MAX_ARGUMENT = 200


def apply(draft: Draft, *, gui: bool) -> None:
    """Set optimizer, learning rates and schedule."""
    _read_arguments(draft)
    name = draft.get("optimizer_type", text, "")
    if draft.get("use_8bit_adam", flag, False):
        name = "AdamW8bit"
    elif draft.get("use_lion_optimizer", flag, False):
        name = "Lion"
    kind = KINDS.get(name.rpartition(".")[2].lower() or "adamw")
    if kind == "adafactor" and draft.get("optimizer_args.relative_step", flag, True):
        kind, name = None, "Adafactor (relative_step)"
    if kind == "muon" and draft.values.get("optimizer_args.adjust_lr_fn") != "match_rms_adamw":
        kind, name = None, "Muon (adjust_lr_fn=original)"  # a rate for steps of another size
    if kind and optimization.is_variant(draft, kind, NAMES):
        kind, name = None, _("{name} in this variant", name=name.rpartition(".")[2])
    if kind is None:
        optimization.leave_optimizer(draft, name, NAMES)
        return
    optimization.set_optimizer(draft, kind, NAMES)
    if name.lower() in ("lion8bit", "pagedlion8bit"):
        draft.note("The state of Lion has full precision here.")
    _set_rates(draft, kind, gui=gui)
    _set_schedule(draft, gui=gui)


def _read_arguments(draft: Draft) -> None:
    """Read `AdamW8bit(weight_decay=0.1)`, as metadata have it, and the literals of arguments."""
    match = re.fullmatch(r"([\w.]+)\((.{0,2000})\)", str(draft.values.get("optimizer_type", "")), re.DOTALL)
    if match:
        draft.values["optimizer_type"] = match[1]
        parts = re.findall(r"(\w+)=(\([^()]*\)|[^,()]+)", match[2])
        draft.values |= {f"optimizer_args.{key}": value.strip() for key, value in parts}
    for key, value in draft.values.items():
        if key.startswith("optimizer_args.") and isinstance(value, str):
            draft.values[key] = _literal(value)


def _literal(value: str) -> Any:  # noqa: ANN401 - any literal
    try:
        return ast.literal_eval(value) if len(value) <= MAX_ARGUMENT else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _set_rates(draft: Draft, kind: str, *, gui: bool) -> None:
    common = draft.get("learning_rate", number, DEFAULT_RATE)
    unet = draft.get("unet_lr", number, None)
    encoder = draft.get("text_encoder_lr", _first_number, None)
    if gui and not unet and not encoder:  # the GUI takes two zeros as nothing said
        unet = encoder = None
    rate = common if unet is None else unet
    text_rate = common if encoder is None else encoder
    if draft.get("network_train_text_encoder_only", flag, False) or (text_rate and not rate):
        draft.note("The recipe trains the text encoder only; Limner always trains the denoiser, too.")
        rate = rate or text_rate
    if draft.get("network_train_unet_only", flag, False) or network_args.trains_unet_only(draft):
        text_rate = 0.0
    if ROWS[kind].finds_rate and text_rate and text_rate != rate:
        draft.note("Prodigy has one rate for all parts here.")
        text_rate = rate
    text_keys = ["network_train_unet_only", "learning_rate" if encoder is None and text_rate else "text_encoder_lr"]
    optimization.set_rates(draft, rate, text_rate, ("learning_rate" if unet is None else "unet_lr",), tuple(text_keys))
    draft.leave("replaced", *({"learning_rate", "unet_lr", "text_encoder_lr"} - draft.mapped.keys()))
    rates = draft.values.get("text_encoder_lr")
    if isinstance(rates, list) and len({str(item) for item in rates}) > 1:
        draft.note("Both text encoders have one learning rate here, that of the first.")


def _first_number(value: object) -> float:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        value = value.strip("[]() ").split(",")[0]
    return number(value)


def _set_schedule(draft: Draft, *, gui: bool) -> None:
    name, kind = optimization.read_schedule(draft, NAMES, SCHEDULES)
    if not is_idle(draft.values.get("lr_scheduler_type")):
        optimization.leave_schedule(draft, "lr_scheduler", "lr_scheduler_type")
        kind = "constant"
    warmup_key, warmup = _warmup(draft, gui=gui)
    if name == "constant":
        warmup = 0
        draft.leave("off", "lr_warmup", "lr_warmup_steps")
    cycles = draft.get("lr_scheduler_num_cycles", positive, None) or 1
    if gui and name == "cosine_with_restarts" and is_idle(draft.values.get("lr_scheduler_num_cycles")):
        cycles = draft.get("epoch", positive, None) or 1
    if name != "cosine_with_restarts":
        cycles = 1
        draft.leave("off", "lr_scheduler_num_cycles")
    power = draft.get("lr_scheduler_power", number, 1.0)
    if name == "polynomial" and power != 1:
        draft.note(
            "Limner has no polynomial schedule of power {power}; the rate falls in a straight line.", power=power
        )
    elif name != "polynomial":
        draft.leave("off", "lr_scheduler_power")
    minimum = draft.get("lr_scheduler_min_lr_ratio", number, 0.0)
    if name not in ("cosine_with_min_lr", "warmup_stable_decay"):
        minimum = 0.0
        draft.leave("off", "lr_scheduler_min_lr_ratio")
    decay = draft.get("lr_decay_steps", number, 0.0)
    if kind == "warmup-stable-decay":
        draft.note("The rate falls in a straight line at the end; there it follows a cosine.")
    else:
        draft.leave("off", "lr_decay_steps")
    keys = {
        "kind": ("lr_scheduler",),
        "warmup": (warmup_key,),
        "cycles": ("lr_scheduler_num_cycles",),
        "min_lr_ratio": ("lr_scheduler_min_lr_ratio",),
        "cooldown": ("lr_decay_steps",),
    }
    optimization.set_schedule(draft, optimization.Schedule(kind, warmup, decay, minimum, cycles), keys)


def _warmup(draft: Draft, *, gui: bool) -> tuple[str, float]:
    """Return the warm-up in steps, or as a share; the GUI's own field is in percent."""
    steps = draft.get("lr_warmup_steps", number, 0.0)
    if gui and not steps:
        return "lr_warmup", draft.get("lr_warmup", number, 0.0) / 100
    return "lr_warmup_steps", steps
