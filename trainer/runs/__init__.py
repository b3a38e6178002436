"""Run folders under `outputs/`: create, list, start, stop and read them. The folder is the whole interface."""

from trainer.runs.control import pause, request, start
from trainer.runs.run import (
    ACTIVE,
    COMMANDS,
    PAUSE_POLL,
    Command,
    Run,
    StopRequestedError,
    all_runs,
    create,
    find,
    log_tail,
    new_folder,
    short_address,
)
from trainer.runs.view import ENDS, START_GRACE, STATUS_LABELS, View, check_ended, find_similar, is_locked, look
