"""Captions written by a model, as runs of their own: their settings, folders, and what becomes of their words."""

from trainer.captioning.run import SUGGESTED, CaptionConfig, create, keep, load, newest, put, wanted, words

__all__ = ["SUGGESTED", "CaptionConfig", "create", "keep", "load", "newest", "put", "wanted", "words"]
