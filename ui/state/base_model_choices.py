"""Base models in the list of the Train tab: the built-in one, those in the models folder, those used before."""

from pathlib import Path

from trainer import paths, runs
from trainer.base_models import MICRO, detect
from trainer.base_models.registry import FAMILIES
from trainer.errors import UserError
from trainer.i18n import _

RECENT_RUNS = 50  # runs that are searched for bases used before
SHOWN = 8  # of the bases used before


def choices() -> list[tuple[str, str]]:
    """Return (label, base) of each, the built-in one first."""
    labels = {MICRO: _("Micro, built in")}
    for path in _model_files():
        labels.setdefault(str(path), f"{path.stem}, {_family(str(path))}")
    for base in _used():
        name = Path(base).stem if detect.is_here(base) else base
        labels.setdefault(base, _("{base}, used before", base=name))
    return [(label, base) for base, label in labels.items()]


def practice(base: str) -> str:
    """Explain that the built-in base is for practice, and how to use a real one; "" for a real one."""
    if base != MICRO:
        return ""
    return _(
        "Micro is for practice. For real use, put a Stable Diffusion .safetensors file into the folder models, or "
        "enter a path or a name on the Hugging Face Hub under Base model in step 2."
    )


def _model_files() -> list[Path]:
    if not paths.models().is_dir():
        return []
    return [
        path
        for path in sorted(paths.models().iterdir())
        if path.suffix == ".safetensors" or (path / "model_index.json").is_file()
    ]


def _family(base: str) -> str:
    detected = detect.glance(base)
    return FAMILIES[detected.family].title if detected else _("not a known base model")


def _used() -> list[str]:
    """Return the bases of recent runs that can still be used."""
    bases: list[str] = []
    for run in runs.all_runs()[:RECENT_RUNS]:
        try:
            base = run.config().model.base
        except UserError:  # of an older version, or damaged
            continue
        if base not in bases and (detect.is_here(base) or detect.is_hub_name(base)):
            bases.append(base)
    return bases[:SHOWN]
