"""Recipes of Limner itself: the config of a run, and the one in the metadata of an adapter file."""

import re
from collections.abc import Mapping
from typing import Any

from limner_extensions.recipes import sections
from limner_extensions.recipes.draft import Draft, Recipe
from limner_extensions.recipes.values import flat
from trainer import config
from trainer.base_models import MICRO, detect
from trainer.config import renames

SECTIONS = {"model", "adapter", "optimizer", "schedule", "training", "objective", "captions", "preview", "checkpoint"}
OF_THAT_MACHINE = re.compile(
    r"name|dataset|trigger|subjects|record\.|regularization\.dataset|task|model\.vae$|model\.revision"
)
DECIDED_HERE = re.compile(
    r"training\.(devices|cards|memory|micro_batches|gradient_checkpointing|offload)|model\.family"
)
FILES = {f"{section}.{name}" for section, settings in config.FILES.items() for name in settings}


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
    draft.leave_matching({"of that machine": OF_THAT_MACHINE, "decided here": DECIDED_HERE})
    for key, value in draft.values.items():
        if key in draft.left:
            continue
        if key in FILES and not _is_known(str(value)):
            draft.leave("of that machine", key)
            if key == "model.base":
                sections.note_base(draft, str(value))
        else:
            draft.set(key, value, key)
    return draft.finish("Limner")


def _is_known(base: str) -> bool:
    """Return True if a name of a file is empty, or that of a file on this machine or on the hub."""
    return base in ("", MICRO) or detect.is_here(base) or detect.is_hub_name(base)
