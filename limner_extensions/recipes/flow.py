"""Noise levels of other programs, as ours. Limner shifts those of flow matching as the base model does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.families import Flow
from limner_extensions.recipes.values import number
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import FamilySpec
from trainer.errors import UserError
from trainer.i18n import _

CLOSE = 0.01  # of shifts
MORE_LAYERS = _(
    "{program} also adapts the other linear layers of the transformer's blocks, such as those of the modulation; "
    "Limner does not."
)


@dataclass(frozen=True)
class Levels:
    """A distribution of noise levels: its kind, what belongs to that, and the shift; None = the usual of the family."""

    kind: Literal["uniform", "logit-normal", "mode"] = "uniform"
    shift: float | None = 1.0
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29


def set_levels(draft: Draft, flow: Flow | None, levels: Levels, *keys: str) -> None:
    """Set the noise levels.

    A shift of logit-normal levels is the same as a mean that is higher by its logarithm, since the shifted sigmoid of x
    is the sigmoid of x + log(shift). So they arrive exactly; of the others, a shift that is not ours is named.
    """
    ours = theirs = 1.0
    if flow:
        side = int(draft.settings["training.resolution"])
        ours, theirs = flow.own_shift(draft.settings.get("model.base", ""), side), flow.shift(side)
    if levels.shift is not None:
        theirs = levels.shift
    draft.set("objective.timestep_sampling", levels.kind, *keys)
    values: Mapping[str, Any] = {}
    if levels.kind == "logit-normal":
        values = {"logit_mean": round(levels.mean + math.log(theirs / ours), 4), "logit_std": levels.std}
    elif levels.kind == "mode":
        values = {"mode_scale": levels.mode_scale}
    for name, value in values.items():
        draft.set(f"objective.{name}", value, *keys)
    if levels.kind != "logit-normal" and abs(theirs / ours - 1) > CLOSE:
        draft.note(
            "Noise levels are shifted by {ours} here, as in the base model, and by {theirs} in the recipe.",
            ours=f"{ours:.3g}",
            theirs=f"{theirs:.3g}",
        )


def note_family(draft: Draft, spec: FamilySpec) -> None:
    """Say what kind of base model the settings are for, if the recipe names none that can be taken."""
    if "model.base" not in draft.settings:
        draft.note("The recipe is for {family}: choose such a base model.", family=spec.title)


def shifted(share: float, flow: Flow, levels: Levels, side: int) -> float:
    """Return the noise level that a share from 0 to 1 is shifted to, in images of a side in pixels."""
    shift = flow.shift(side) if levels.shift is None else levels.shift
    return shift * share / (1 + (shift - 1) * share)


def refusal() -> UserError:
    """Return the error for a recipe of another model."""
    return UserError(
        "This recipe is not for a model that Limner trains.",
        "Give one for {families}.",
        families=", ".join(family.title for family in FAMILIES.values()),
    )


def above_zero(value: object) -> float:
    """Read a number above 0."""
    result = number(value)
    if result <= 0:
        raise ValueError("not above 0")
    return result
