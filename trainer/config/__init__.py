"""Settings of a run in one schema, from which the TOML file, the form, the checks and the docs are made."""

from trainer.config.picture import PictureConfig
from trainer.config.run_config import (
    PRESETS,
    CheckpointConfig,
    ModelConfig,
    PreviewConfig,
    Record,
    TrainConfig,
    build,
    check,
    dump,
    load,
    load_partial,
    merged,
    messages,
    micro_side,
    override,
    preset,
    problems,
    resolved,
)

__all__ = [
    "PRESETS", "CheckpointConfig", "ModelConfig", "PictureConfig", "PreviewConfig", "Record", "TrainConfig", "build",
    "check", "dump", "load", "load_partial", "merged", "messages", "micro_side", "override", "preset", "problems",
    "resolved",
]  # fmt: skip
