"""A VAE that is given beside a base model: find it, and refuse what does not fit, by headers and configs alone."""

import itertools
from pathlib import Path

from trainer.base_models import detect
from trainer.base_models.detect import Base
from trainer.base_models.registry import DEFAULT, FAMILIES, FamilyName
from trainer.base_models.spec import VAE_ENTRIES
from trainer.errors import UserError
from trainer.i18n import _

REMEDY = _("Give the .safetensors file of a VAE for Stable Diffusion, or its folder in diffusers format.")
_CHANNELS = 4  # of the latents, if a config does not say
_PREFIXES = ("first_stage_model.", "")  # of its tensors in a base model, and in a file of its own


def find(path: Path, base: Base, vae: str) -> Path | None:
    """Return the file or folder of the VAE for a base model, from the settings or beside it; None if it has its own.

    Raises:
        UserError: it is not there, or does not fit; or there is none at all.
    """
    if vae:
        return _look(Path(vae).expanduser(), base)
    if not base.has_vae:
        if path.is_file() and (beside := find_beside(path, FAMILIES[base.family].vae_file)):
            return _look(beside, base)
        raise UserError(
            "The base model {name!r} has no VAE.",
            "Give one under VAE, in the settings of the base model: a .safetensors file for {family}.",
            name=path.name,
            family=FAMILIES[base.family].title,
        )
    return None


def find_beside(path: Path, name: str) -> Path | None:
    """Return the file of this name, without extension, that holds the VAE of a single file; None if there is none."""
    files = [folder / f"{name}.safetensors" for folder in detect.folders_beside(path)] if name else []
    return next((file for file in files if file.is_file() and detect.is_here(str(file))), None)


def _look(path: Path, base: Base) -> Path:
    if not detect.is_here(str(path)):
        raise UserError("The VAE {name!r} does not exist.", REMEDY, name=path.name[:100])
    if path.is_file() and (path.parent / "config.json").is_file():
        path = path.parent  # whose config says more than the file
    if path.is_file():
        _check_file(path, base.family)
        return path
    folders = [folder for folder in (path, path / "vae") if (folder / "config.json").is_file()]
    if not folders:
        raise _refusal(path, "the folder has no config.json")
    _check_folder(folders[0], base)
    return folders[0]


def _refusal(path: Path, reason: str, /, **values: object) -> UserError:
    reason = _(reason, **values)
    return UserError("The VAE {name!r} cannot be used: {reason}.", REMEDY, name=path.name, reason=reason)


def _check_file(path: Path, family: FamilyName) -> None:
    if path.suffix.lower() != ".safetensors":
        raise _refusal(path, "it is not a .safetensors file, and other kinds can contain programs")
    try:
        shapes, _metadata = detect.read_header(path)
    except (UserError, OSError):
        raise _refusal(path, "it is not a safetensors file, or is damaged") from None
    dimensions = 5 if FAMILIES[family].vae_of_videos else 4
    for prefix, entry in itertools.product(_PREFIXES, VAE_ENTRIES):
        encoder, decoder = (shapes.get(f"{prefix}{part}.{entry}.weight", []) for part in ("encoder", "decoder"))
        if len(encoder) == len(decoder) == dimensions:
            _check_channels(path, decoder[1], family)
            return
    raise _refusal(
        path, "it does not have the encoder and the decoder of a VAE for {family}", family=FAMILIES[family].title
    )


def _check_folder(folder: Path, base: Base) -> None:
    config = detect.read_json(folder / "config.json")
    spec = FAMILIES[base.family]
    if config.get("_class_name") != spec.vae_class:
        raise _refusal(folder, "it is not an {kind}", kind=spec.vae_class)
    if not any(folder.glob("*.safetensors")):
        raise _refusal(folder, "it has no .safetensors file, and other kinds can contain programs")
    channels = config.get("latent_channels", config.get("z_dim", _CHANNELS))
    _check_channels(folder, channels, base.family)
    if spec.vae_scale and config.get("scaling_factor", FAMILIES[DEFAULT].vae_scale) != spec.vae_scale:
        raise _refusal(folder, "it is for another family than {family}", family=spec.title)


def _check_channels(path: Path, channels: object, family: FamilyName) -> None:
    spec = FAMILIES[family]
    if channels != spec.vae_channels:
        raise _refusal(
            path,
            "its latents have {channels} channels, those of {family} have {number}",
            channels=channels,
            family=spec.title,
            number=spec.vae_channels,
        )
