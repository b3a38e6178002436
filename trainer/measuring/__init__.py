"""Measure the checkpoints of a run beside the bare base model: a job with folder, log, queue and stop."""

from trainer.measuring.job import MeasureConfig, create, folder_of, load, newest, read_table
from trainer.measuring.table import MEASURES, REASONS, TITLES, Figure, Row, Table

__all__ = [
    "MEASURES",
    "REASONS",
    "TITLES",
    "Figure",
    "MeasureConfig",
    "Row",
    "Table",
    "create",
    "folder_of",
    "load",
    "newest",
    "read_table",
]
