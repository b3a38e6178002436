"""Settles what the base model of a run predicts, once, before its first step."""

from dataclasses import replace

import torch

from trainer.config import TrainConfig
from trainer.families import Family, prediction_probe
from trainer.i18n import say
from trainer.runs import Run, events
from trainer.training.batches import Batch
from trainer.training.loss import conditioned

CLEAR = 0.9  # of two errors nearer to each other than this, neither says much


def settle(config: TrainConfig, family: Family, batch: Batch, run: Run) -> TrainConfig:
    """Write down what the base predicts and how that was found; where it does not say, it is asked about the pictures.

    A resumed run keeps what was found when it began.
    """
    if config.record.objective:
        return config
    reason = family.found.reason
    if config.model.objective != "auto":
        reason = "as set"
    elif family.found.objective is None:
        with torch.no_grad():
            conditioning = conditioned(
                family, replace(batch, preserved=(), preserved_conditioning=None), config.captions.chunks
            )
        errors = prediction_probe.ask(family, batch.mean, conditioning)
        reason = ", ".join(f"mean error {error:.3f} as {name}" for name, error in errors.items())
        if min(errors.values()) > CLEAR * max(errors.values()):
            told = say(
                "It is not clear whether the base model predicts noise or v ({errors}). If previews come out grey or "
                "noisy, set the objective to the other one.",
                errors=", ".join(f"{name} {error:.3f}" for name, error in errors.items()),
            )
            run.report(events.Warned(message=told))
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"objective": family.objective}),
            "record": config.record.model_copy(update={"objective": reason}),
        }
    )
    run.keep(config)
    return config
