"""Settings of a run in one schema, from which the TOML file, the form, the checks and the docs are made."""

from trainer.config.loading import (
    FILES,
    PRESETS,
    build,
    check,
    complete,
    dump,
    error_messages,
    find_errors,
    load,
    load_partial,
    merge,
    nested,
    override,
    parse,
    preset,
    with_files_of,
    with_paths,
    without_paths,
)
from trainer.config.previews import PreviewConfig
from trainer.config.prompt_lines import PictureConfig
from trainer.config.run_config import (
    CheckpointConfig,
    ModelConfig,
    Preset,
    Record,
    TrainConfig,
    micro_resolution,
)
