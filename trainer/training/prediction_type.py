"""Resolve the prediction type of a run's base model, once, before its first step."""

from dataclasses import replace

import torch

from trainer.config import TrainConfig
from trainer.families import Family
from trainer.runs import Run
from trainer.sampling import prediction_probe
from trainer.training.inputs.batches import Batch
from trainer.training.loss import conditioned

CLEAR = 0.9  # a ratio of two errors nearer to 1 than this says little


def resolve(config: TrainConfig, family: Family, batch: Batch, run: Run) -> TrainConfig:
    """Return the settings with what the base predicts, and save them; if its files do not tell, it is probed.

    A resumed run keeps what it began with.
    """
    if config.record.prediction_type:
        return config
    reason = family.base.reason
    if config.model.prediction_type != "auto":
        reason = "as set"
    elif family.base.prediction_type is None:
        with torch.no_grad():
            conditioning = conditioned(
                family, replace(batch, preserved=(), preserved_conditioning=None), config.captions.chunks
            )
        errors = prediction_probe.probe(family, batch.mean, conditioning)
        reason = ", ".join(f"mean error {error:.3f} as {name}" for name, error in errors.items())
        if min(errors.values()) > CLEAR * max(errors.values()):
            run.warn(
                "It is not clear whether the base model predicts noise or v ({errors}). If previews come out gray or "
                "noisy, set the objective to the other one.",
                errors=", ".join(f"{name} {error:.3f}" for name, error in errors.items()),
            )
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"prediction_type": family.noise.prediction_type}),
            "record": config.record.model_copy(update={"prediction_type": reason}),
        }
    )
    run.save_config(config)
    return config
