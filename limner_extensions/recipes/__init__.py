"""Recipes: settings files and adapters of other trainers, read as settings of ours, and ours written as kohya's."""

from trainer.extension import Extension

EXTENSION = Extension(
    "recipes",
    commands="limner_extensions.recipes.commands:app",
    panels={
        "check": "limner_extensions.recipes.commands:named_datasets",
        "settings": "limner_extensions.recipes.panel:build",
    },
)
