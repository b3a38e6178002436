"""Runs that another version of Limner began: what is computed differently from here on, and what cannot go on."""

from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from trainer import __version__
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import _


@dataclass(frozen=True)
class Upgrade:
    """A change of what a run computes: the first version with it, the runs that it concerns, and what changed."""

    version: str
    concerns: Callable[[TrainConfig], bool]
    change: str


def _has_warmup(config: TrainConfig) -> bool:
    return config.schedule.kind in ("cosine", "linear") and config.schedule.warmup > 0


UPGRADES = (
    Upgrade("0.2.0.dev0", _has_warmup, _("the learning rate, as the schedule begins after the warm-up")),
    Upgrade("0.2.0.dev0", lambda config: config.training.ema_decay > 0, _("the average of the weights")),
    Upgrade("0.2.0.dev0", lambda config: config.objective.weighting == "debiased", _("the weighting of the loss")),
    Upgrade("0.2.0.dev1", lambda config: config.training.batch_size > 1, _("which images form a batch")),
)


def check(program: str, config: TrainConfig) -> None:
    """Check that a checkpoint of another version can be resumed.

    Raises:
        UserError: its adapter has another form here.
    """
    if _is_before(program, "0.2.0.dev0") and config.adapter.dora:
        raise UserError(
            "This DoRA run was begun by Limner {program}, which trained a length for each output of a layer; now it is "
            "one for each input.",
            "Finish it with that version, or start it again with the same settings.",
            program=program,
        )


def note(program: str, config: TrainConfig, step: int) -> str:
    """Return what changes when a run goes on from a checkpoint of another version; "" if nothing does."""
    changes = [
        upgrade.change for upgrade in UPGRADES if _is_before(program, upgrade.version) and upgrade.concerns(config)
    ]
    if not changes:
        return ""
    return _(
        "Limner {program} saved step {step}; this is {version}. From here on these differ: {changes}.",
        program=program,
        step=step,
        version=__version__,
        changes=", ".join(changes),
    )


def _is_before(program: str, version: str) -> bool:
    try:
        return Version(program) < Version(version)
    except InvalidVersion:  # of a manifest that someone edited
        return False
