"""Measure the checkpoints of a run beside the bare base model: a job with folder, log, queue and stop."""

from trainer.extension import Extension

EXTENSION = Extension(
    "measuring",
    commands="limner_extensions.measuring.commands:app",
    jobs={"measure": "limner_extensions.measuring.measure:measure"},
    panels={
        "api": "limner_extensions.measuring.endpoints:build",
        "try-out": "limner_extensions.measuring.panel:build",
    },
)
