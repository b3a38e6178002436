"""Base models that can be chosen without typing: the built-in one, those in the models folder, those used before."""

from pathlib import Path

from trainer import paths, runs
from trainer.base_models import MICRO, detect
from trainer.base_models.registry import FAMILIES
from trainer.errors import UserError
from trainer.i18n import say

LOOKED_AT = 50  # runs
SHOWN = 8  # of those used before


def choices() -> list[tuple[str, str]]:
    """(label, base) of each, the built-in one first."""
    found = {MICRO: say("Micro, built in")}
    for path in sorted(paths.models().iterdir()) if paths.models().is_dir() else ():
        if path.suffix == ".safetensors" or (path / "model_index.json").is_file():
            found.setdefault(str(path), f"{path.stem}{_family(str(path))}")
    for base in _used():
        found.setdefault(base, say("{base}, used before", base=Path(base).stem if detect.is_here(base) else base))
    return [(label, base) for base, label in found.items()]


def practice(base: str) -> str:
    """That the built-in base is for practice, and how to use a real one; "" for a real one."""
    if base != MICRO:
        return ""
    return say(
        "Micro is for practice; for real use put a Stable Diffusion .safetensors file into the folder models, or give "
        "its path or its name on the hub, under Base model in step 2."
    )


def _family(base: str) -> str:
    seen = detect.glance(base)
    return f", {FAMILIES[seen.family].title if seen else say('not a known base model')}"


def _used() -> list[str]:
    """Bases of the newest runs that are still there to be used."""
    found: list[str] = []
    for run in runs.all_runs()[:LOOKED_AT]:
        try:
            base = run.config().model.base
        except UserError:  # of an older version, or broken
            continue
        if base not in found and (detect.is_here(base) or detect.is_hub_name(base)):
            found.append(base)
    return found[:SHOWN]
