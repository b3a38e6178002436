"""Detect what a base model is from its configs and headers alone: family, prediction type, noise schedule.

It stands apart from `families` because the page and the settings ask it too, and they do without torch. No weight is
read: of a single file only the header (names and shapes), of a folder only its small JSON files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, try_to_load_from_cache

from trainer import paths
from trainer.errors import UserError
from trainer.i18n import say

FamilyName = Literal["sd15", "sd21", "sdxl"]
Objective = Literal["epsilon", "v_prediction"]
TITLES: dict[str, str] = {
    "sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL",
}  # fmt: skip
REMEDY = say(
    "Use a Stable Diffusion 1.x, 2.x or XL model: a folder in diffusers form, one .safetensors file, or 'micro', the "
    "built-in one."
)
HUB_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
MAX_HEADER = 64 * 2**20
# What comes along with the program, and what was fetched from the hub.
_PUBLIC = (Path(__file__).resolve().parent, Path(constants.HF_HUB_CACHE).resolve())
SMALL = 200 * 2**20  # bytes; the smallest real one is eight times that
_WIDTHS: dict[int, FamilyName] = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
_UNET = "model.diffusion_model."
_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")  # the parts of a folder that have some
_PARTS: dict[FamilyName, dict[str, str]] = {
    "sd15": {say("text encoder"): "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"},
    "sd21": {say("text encoder"): "cond_stage_model.model.token_embedding.weight"},
    "sdxl": {
        say(
            "first text encoder"
        ): "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        say("second text encoder"): "conditioner.embedders.1.model.token_embedding.weight",
    },
}


@dataclass(frozen=True)
class Base:
    """Detected base model. The objective is None where files do not tell it; `reason` says where it was found.

    The revision is the commit of a base from the hub.
    """

    family: FamilyName
    objective: Objective | None
    zero_snr: bool
    reason: str
    revision: str = ""


def is_small(path: Path) -> bool:
    """Tell whether a base model, a folder or a single file, is a miniature, by the size of its denoiser's files."""
    parts = (path / "unet").glob("*.safetensors") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in parts if one.is_file()) < SMALL


def is_here(base: str) -> bool:
    """Tell whether a base is a path on this machine that this user may read."""
    try:
        path = Path(base).expanduser()
        return path.exists() and (paths.is_open(path) or any(path.resolve().is_relative_to(one) for one in _PUBLIC))
    except (OSError, RuntimeError):  # a name that is too long, or of an unknown home
        return False


def is_hub_name(base: str) -> bool:
    """Tell whether a base is a name on the Hugging Face hub (`owner/name`), and no path on this machine."""
    return bool(HUB_NAME.fullmatch(base)) and not is_here(base)


def glance(base: str, revision: str = "") -> Base | None:
    """Detect a base model without a network; returns None if it is not here or cannot be used."""
    path = Path(base).expanduser() if is_here(base) else None
    try:
        if is_hub_name(base):
            found = try_to_load_from_cache(base, "model_index.json", revision=revision or None)
            path = Path(found).parent if isinstance(found, str) else None
        return look(path) if path else None
    except (UserError, OSError, ValueError):  # the latter two for a name or a revision that the hub's cache cannot have
        return None


def look(path: Path) -> Base:
    """Detect the base model at a path.

    Raises:
        UserError: it is not there, or no base model that can be trained; it says why.
    """
    if not is_here(str(path)):
        raise UserError("The base model {name!r} is not there.", REMEDY, name=path.name[:100])
    return _look_at_folder(path) if path.is_dir() else _look_at_file(path)


def _refusal(path: Path, reason: str, /, **values: object) -> UserError:
    reason = say(reason, **values)
    return UserError("The base model {name!r} cannot be used: {reason}.", REMEDY, name=path.name, reason=reason)


def _look_at_folder(folder: Path) -> Base:
    kind = _json(folder / "model_index.json").get("_class_name")
    if kind is None:
        raise UserError(
            "The folder {name!r} is no diffusers model: it has no model_index.json.", REMEDY, name=folder.name
        )
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise _refusal(folder, "it is a {kind}", kind=kind)
    for part in _WEIGHTS:
        endings = {one.suffix for one in (folder / part).glob("*")}
        if ".bin" in endings and ".safetensors" not in endings:
            raise UserError(
                "The base model {name!r} has its weights in .bin files, and these can hold programs.",
                "Get the model in safetensors form, or convert it with a program that you trust.",
                name=folder.name,
            )
    unet, scheduler = _json(folder / "unet" / "config.json"), _json(folder / "scheduler" / "scheduler_config.json")
    if not unet or not scheduler:
        raise _refusal(folder, "the settings of its UNet or scheduler are missing or damaged")
    sizes = kind == "StableDiffusionXLPipeline"
    family = _family(folder, sizes, bool(unet.get("use_linear_projection")), unet.get("cross_attention_dim"))
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        raise _refusal(folder, "it is made for inpainting or editing")
    objective = scheduler.get("prediction_type", "epsilon")
    if objective not in ("epsilon", "v_prediction"):
        raise _refusal(folder, "it predicts {objective!r}, which cannot be trained here", objective=objective)
    return Base(family, objective, bool(scheduler.get("rescale_betas_zero_snr")), "read from its scheduler's settings")


def _json(path: Path) -> dict[str, Any]:
    """A small JSON file; {} if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _family(path: Path, sizes: bool, linear: bool, width: Any) -> FamilyName:  # noqa: ANN401 - foreign JSON
    """The family by its structure, which holds at any size; the width of the cross-attention must agree.

    XL is told the pictures' sizes; 2.x has linear layers where 1.x has 1 x 1 convolutions around its attention.
    """
    family: FamilyName = "sdxl" if sizes else "sd21" if linear else "sd15"
    if isinstance(width, int) and _WIDTHS.get(width, family) != family:
        raise _refusal(
            path, "it looks like {family}, but its text has the width {width}", family=TITLES[family], width=width
        )
    return family


def _look_at_file(path: Path) -> Base:
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            "The base model {name!r} is no .safetensors file, and other kinds can hold programs.",
            "Get the model in safetensors form, or convert it with a program that you trust.",
            name=path.name,
        )
    try:
        shapes, metadata = _header(path)
    except OSError:
        raise _refusal(path, "it cannot be read") from None
    if not any(key.startswith(_UNET) for key in shapes):
        raise _refusal(path, "it has no UNet of Stable Diffusion under the names of the original files")
    if any(key.startswith("edm_") for key in shapes):
        raise _refusal(path, "it was trained in the EDM form, which cannot be trained here")
    if shapes.get(f"{_UNET}input_blocks.0.0.weight", [0, 4])[1] != shapes.get(f"{_UNET}out.2.weight", [4])[0]:
        raise _refusal(path, "it is made for inpainting or editing")
    inner = {key: shape for key, shape in shapes.items() if key.startswith(_UNET)}
    width = next((shape[-1] for key, shape in inner.items() if key.endswith("attn2.to_k.weight")), None)
    linear = any(len(shape) == 2 for key, shape in inner.items() if key.endswith("1.proj_in.weight"))
    family = _family(path, f"{_UNET}label_emb.0.0.weight" in shapes, linear, width)
    parts = {"VAE": "first_stage_model.decoder.conv_in.weight", **_PARTS[family]}
    missing = [name for name, key in parts.items() if key not in shapes]
    if missing:
        raise _refusal(path, "it looks like {family}, but has no {part}", family=TITLES[family], part=missing[0])
    objective, reason = _objective_of_file(family, shapes, metadata)
    return Base(family, objective, "ztsnr" in shapes, reason)


def _objective_of_file(
    family: FamilyName, shapes: dict[str, list[int]], metadata: dict[str, str]
) -> tuple[Objective | None, str]:
    """Single files have no place for it: marks that tuners add, then the custom of the family."""
    if "v_pred" in shapes:
        return "v_prediction", "marked v_pred in the file"
    told: dict[str | None, Objective] = {"v": "v_prediction", "epsilon": "epsilon"}
    if known := told.get(metadata.get("modelspec.prediction_type")):
        return known, "written in the file's metadata"
    if family == "sd21":
        return None, "the file does not say; both kinds of Stable Diffusion 2.x look alike"
    return "epsilon", f"the file does not say otherwise, and {TITLES[family]} predicts noise"


def _header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shapes by tensor name, and the metadata, of a safetensors file whose length fits its header."""
    damaged = _refusal(path, "it is no safetensors file, or damaged")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise damaged
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            shapes = {key: list(entry["shape"]) for key, entry in header.items()}
            end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise damaged from None
    if 8 + length + end != size:
        raise _refusal(path, "it is cut off, or damaged")
    return shapes, metadata if isinstance(metadata, dict) else {}
