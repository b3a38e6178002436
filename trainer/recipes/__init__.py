"""Recipes: settings files and adapters of other trainers, read as settings of ours, and ours written as kohya's."""

from trainer.recipes.draft import Recipe
from trainer.recipes.kohya_export import Export, export
from trainer.recipes.reading import read

__all__ = ["Export", "Recipe", "export", "read"]
