"""Recipes of Limner itself: the config of a run, and the one in the metadata of an adapter file."""

import re
from collections.abc import Mapping
from typing import Any

from limner_extensions.recipes import sections
from limner_extensions.recipes.draft import Draft, Recipe, flat
from trainer.base_models import MICRO, detect
from trainer.config import renames

SECTIONS = {"model", "adapter", "optimizer", "schedule", "training", "objective", "captions", "preview", "checkpoint"}
OF_THAT_MACHINE = re.compile(
    r"name|dataset|trigger|subjects|record\.|regularization\.dataset|task|model\.vae$|model\.revision"
)
DECIDED_HERE = re.compile(
    r"training\.(devices|cards|memory|micro_batches|gradient_checkpointing|offload)|model\.family"
)

FILES = ("model.base", "model.training_adapter", "preview.adapter")  # which may be on the hub


def is_recipe(data: Mapping[str, Any]) -> bool:
    """Return True if a table is a config of Limner."""
    tables = {name for name in SECTIONS if isinstance(renames.current(dict(data)).get(name), Mapping)}
    kinds = [
        isinstance(data.get(name), Mapping) and "kind" in data[name] for name in ("adapter", "optimizer", "schedule")
    ]
    return len(tables) >= 3 or any(kinds) or {"name", "dataset"} <= data.keys()


def read(data: Mapping[str, Any], images: int) -> Recipe:
    """Read a config, without what belongs to its run: names, and what was chosen for its machine."""
    draft = Draft(flat(renames.current(dict(data))), images)
    for key, value in draft.values.items():
        if OF_THAT_MACHINE.match(key):
            draft.leave("of that machine", key)
        elif DECIDED_HERE.match(key):
            draft.leave("decided here", key)
        elif key in FILES and value != MICRO and not detect.is_here(str(value)) and not detect.is_hub_name(str(value)):
            draft.leave("of that machine", key)
            if key == "model.base":
                sections.note_base(draft, str(value))
        else:
            draft.set(key, value, key)
    return draft.finish("Limner")
