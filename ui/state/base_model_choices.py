"""Base models in the list of the Train tab, and what is said about the one that is chosen."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer import paths, runs
from trainer.base_models import MICRO, detect, hub, vae
from trainer.errors import UserError
from trainer.i18n import _, file_size
from ui.state import hub_downloads, page_memory

RECENT_RUNS = 50  # runs that are searched for bases used before
SHOWN = 8  # of the bases used before
SEARCHED = 300  # files of the folders of other programs that are looked at
DEPTH = 3  # folders below such a folder
# Where other programs keep base models, below the folder that they are installed in.
PROGRAM_FOLDERS = (
    *("models/checkpoints", "models/diffusion_models", "models/unet"),  # ComfyUI
    "models/Stable-diffusion",  # A1111 and Forge
)


@dataclass(frozen=True)
class Description:
    """A base model in a sentence; whether a run can start with it, and whether it can be downloaded first."""

    text: str
    is_usable: bool = True
    can_download: bool = False


def choices() -> list[tuple[str, str]]:
    """Return (label, base) of each: built in, on this machine, used before, and well-known ones to download."""
    labels = {MICRO: _("Micro, built in")}
    for path in _model_files(paths.models()):
        labels.setdefault(str(path), _look(path).label)
    for path in _files_of_programs():
        look = _look(path)
        if look.is_base:
            labels.setdefault(str(path), look.label)
    for base in _used():
        name = Path(base).stem if detect.is_here(base) else base
        labels.setdefault(base, _("{base}, used before", base=name))
    for known in hub.WELL_KNOWN:
        here = detect.glance(known.base) is not None
        label = known.title if here else _("{model}, to download", model=known.title)
        labels.setdefault(known.base, label)
    return [(label, base) for base, label in labels.items()]


def describe(base: str, vae_path: str = "") -> Description:
    """Describe a base model as the user named it, and the VAE given with it: what it is, or what is wrong with it."""
    try:
        path, _commit = detect.locate(base)
    except UserError:
        return _describe_on_hub(base)
    try:
        detected = detect.look(path)
        separate = vae.find(path, detected, vae_path)
    except UserError as error:
        return Description(f"{error.message} {error.remedy}", is_usable=False)
    text = practice(base) or _facts(detected, _size(path))
    return Description(f"{text} · VAE: {separate.name}" if separate else text)


def _describe_on_hub(base: str) -> Description:
    """Describe a base model that can be downloaded, as far as it is known."""
    known = next((known for known in hub.WELL_KNOWN if known.base == base), None)
    return Description(hub_downloads.offer(base, known), is_usable=False, can_download=True)


def practice(base: str) -> str:
    """Explain that the built-in base is for practice, and how to use a real one; "" for a real one."""
    if base != MICRO:
        return ""
    return _(
        "Micro draws portraits only, and of photographs it learns a weak likeness at best. Its files work in Limner "
        "and diffusers only. Choose a Stable Diffusion model for real results."
    )


def set_folders(text: str) -> None:
    """Remember the folders of other programs whose base models are listed: one a line.

    Raises:
        UserError: one of them is not a folder, or may not be read.
    """
    folders = [paths.unquoted(line) for line in text.splitlines() if line.strip()]
    for folder in folders:
        if not detect.is_here(folder) or not Path(folder).expanduser().is_dir():
            raise UserError("There is no folder {name!r}.", "Check the path.", name=Path(folder).name)
    page_memory.remember_of_page(model_folders=folders)


def _facts(base: detect.Base, size: int) -> str:
    predicted = {"epsilon": _("predicts noise"), "v_prediction": _("v-prediction"), "flow": _("flow matching")}
    facts = [base.title]
    facts.append(predicted[base.prediction_type] if base.prediction_type else _("prediction type found at the start"))
    if base.zero_snr and base.prediction_type != "epsilon":
        facts.append(_("zero terminal SNR"))
    if base.few_step:
        facts.append(_("distilled to few steps ({kind})", kind=base.few_step.title))
    if base.clip_skip > 1:
        facts.append(_("anime model by its name: clip skip {number}", number=base.clip_skip))
    return " · ".join([*facts, file_size(size)])


def _size(path: Path) -> int:
    """Return the bytes of a base model's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for folder in hub.WEIGHTS for file in (path / folder).glob("*.safetensors"))


def _model_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors" or os.path.isfile(hub.index(path))
    ]


def _files_of_programs() -> list[Path]:
    """List the single files in the folders of other programs, which may be those that they are installed in."""
    files: list[Path] = []
    for name in page_memory.model_folders():
        root = Path(name).expanduser()
        inside = [root / part for part in PROGRAM_FOLDERS if (root / part).is_dir()]
        for folder in inside or [root]:
            if detect.is_here(str(folder)):
                files += sorted(_walk(folder))
    return files[:SEARCHED]


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        if len(Path(folder).relative_to(root).parts) >= DEPTH:
            folders.clear()
        yield from (Path(folder, name) for name in names if name.endswith(".safetensors"))


@dataclass(frozen=True)
class _Look:
    """Words for a file or folder in the list; whether it is a base model, also one that lacks a part."""

    label: str
    is_base: bool


def _look(path: Path) -> _Look:
    try:
        stats = [place.stat() for place in (path, *filter(Path.is_dir, detect.folders_beside(path)))]
    except OSError:  # a link that leads nowhere
        return _Look(_("The base model {name!r} does not exist.", name=path.name), is_base=False)
    # What is beside a file changes with its folder.
    return _look_at_version(path, stats[0].st_size, *(stat.st_mtime_ns for stat in stats))


@lru_cache(maxsize=1000)
def _look_at_version(path: Path, _size: int, *_changed: int) -> _Look:
    try:
        return _Look(f"{path.stem}, {detect.look(path).title}", is_base=True)
    except UserError as error:
        return _Look(error.message, isinstance(error, detect.MissingPartError))


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
