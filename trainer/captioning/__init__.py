"""Captions written by a model, as runs of their own: settings, run folders, and saving the result."""

from trainer.captioning.run import (
    SUGGESTED,
    CaptionConfig,
    apply,
    create,
    images_to_caption,
    load,
    newest,
    read_captions,
    save,
)

__all__ = [
    "SUGGESTED",
    "CaptionConfig",
    "apply",
    "create",
    "images_to_caption",
    "load",
    "newest",
    "read_captions",
    "save",
]
