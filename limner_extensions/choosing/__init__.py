"""Find the best checkpoint and strength of an adapter by eye, from two images at a time."""

from trainer.extension import Extension

EXTENSION = Extension("choosing", panels={"try-out": "limner_extensions.choosing.panel:build"})
