"""Captions written by a model, as runs of their own: settings, run folders, and saving the result."""

from trainer.captioning.kinds import SUGGESTED
from trainer.captioning.run import (
    PROMPT,
    CaptionConfig,
    Category,
    Existing,
    FlorenceTask,
    apply,
    create,
    finish,
    images_to_caption,
    load,
    newest,
    read_captions,
    save,
)
