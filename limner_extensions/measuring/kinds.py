"""Kinds of models that compare images: recognized by their own config, never by their name. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

from trainer import paths
from trainer.base_models import detect
from trainer.captioning.kinds import read_config
from trainer.errors import UserError
from trainer.i18n import _

REMEDY = _("Give the folder of a CLIP, DINO or DINOv2 model in safetensors format, or none.")


@dataclass(frozen=True)
class Kind:
    """A kind of models: its classes in transformers, and whether it reads texts too."""

    name: str
    model_class: str
    reads_text: bool = False
    pooled: bool = True  # its class has a pooling layer that published files may lack, and that is not used


KINDS = {
    "clip": Kind("CLIP", "CLIPModel", reads_text=True, pooled=False),
    "vit": Kind("DINO", "ViTModel"),
    "dinov2": Kind("DINOv2", "Dinov2Model", pooled=False),
    "dinov2_with_registers": Kind("DINOv2", "Dinov2WithRegistersModel", pooled=False),
}


def look(name: str) -> tuple[Path, Kind]:
    """Return the folder of a feature model and its kind.

    Raises:
        UserError: there is none, or it is of an unknown kind or not in safetensors format.
    """
    folder = Path(paths.unquoted(name)).expanduser()
    if not detect.is_here(str(folder)) or not folder.is_dir():
        raise UserError("There is no feature model {name!r}.", REMEDY, name=folder.name[:100])
    kind = KINDS.get(_model_type(folder))
    if kind is None:
        raise UserError(
            "Limner cannot compare images with {name!r}: it is {kind}.",
            REMEDY,
            name=folder.name[:100],
            kind=_model_type(folder)[:100] or _("not a model of transformers"),
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError("The feature model {name!r} is not in safetensors format.", REMEDY, name=folder.name[:100])
    return folder, kind


def choices() -> list[tuple[str, str]]:
    """Return (label, folder) of each feature model in the folder `models`, and of the base model itself, as ""."""
    listed = [(_("The base model itself"), "")]
    root = paths.models()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if kind := KINDS.get(_model_type(folder)):
            listed.append((f"{folder.name}, {kind.name}", str(folder)))
    return listed


def _model_type(folder: Path) -> str:
    return str(read_config(folder).get("model_type") or "")
