"""Run folders under `outputs/`: create, list, start, stop and read them. The folder is the whole interface."""

from trainer.runs.run import (
    ACTIVE,
    COMMANDS,
    ENDS,
    GRACE,
    PATIENCE,
    Command,
    Run,
    StopRequestedError,
    View,
    alike,
    ask,
    create,
    every,
    find,
    is_locked,
    log_tail,
    look,
    pause,
    start,
)

__all__ = [
    "ACTIVE", "COMMANDS", "ENDS", "GRACE", "PATIENCE", "Command", "Run", "StopRequestedError", "View", "alike", "ask",
    "create", "every", "find", "is_locked", "log_tail", "look", "pause", "start",
]  # fmt: skip
