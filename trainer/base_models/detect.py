"""Detect what a base model is from its configs and headers alone: family, prediction type, noise schedule.

It stands apart from `families` because the page and the settings ask it too, and they do without torch. No weight is
read: of a single file only the header (names and shapes), of a folder only its small JSON files.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import foreign_text
from trainer.base_models import MICRO, MICRO_FOLDER, hub, name_hints, other_models
from trainer.base_models.name_hints import FewStep
from trainer.base_models.registry import FAMILIES, TRANSFORMERS, UNETS, FamilyName
from trainer.base_models.spec import DENOISER_KEYS, DENOISERS, NET, VAE_ENTRIES, FamilySpec, PredictionType, Size
from trainer.errors import UserError
from trainer.foreign_text import MAX_HEADER, MAX_TENSORS
from trainer.i18n import _

REMEDY = _(
    "Use a model of a family that Limner trains: a folder in diffusers format, a single .safetensors file, or 'micro', "
    "which is built in."
)
_COMFYUI = ({"diffusion_models", "unet", "checkpoints"}, ("text_encoders", "clip", "vae"))  # folders of parts beside
Header = tuple[Mapping[str, list[int]], Mapping[str, str]]
SMALL = 200 * 2**20  # bytes; the smallest real denoiser is eight times that
_VAE_KEYS = {f"{prefix}.decoder.{layer}.weight" for prefix in ("first_stage_model", "vae") for layer in VAE_ENTRIES}


class MissingPartError(UserError):
    """A single file of a family that lacks a part, whose file can be put beside it."""


@dataclass(frozen=True)
class Base:
    """Detected base model; its prediction type is None where the files do not tell, and `reason` says what told it.

    Zero terminal SNR is for v-prediction only, whatever the files say. The clip skip and the kind of a distilled model
    are what its names suggest. The revision is the commit of a base from the hub.
    """

    family: FamilyName
    prediction_type: PredictionType | None
    zero_snr: bool
    reason: str
    clip_skip: int = 1
    few_step: FewStep | None = None
    has_vae: bool = True
    revision: str = ""
    size: Size | None = None

    @property
    def title(self) -> str:
        """Name of its family, or of its size if the family comes in several."""
        return self.size.title if self.size else FAMILIES[self.family].title


def is_small(path: Path) -> bool:
    """Return True if a base model, a folder or a single file, is a miniature, by the size of its denoiser's files."""
    files = [file for part in DENOISERS for file in (path / part).glob("*.safetensors")] or [path]
    return sum(file.stat().st_size for file in files if file.is_file()) < SMALL


def is_here(base: str) -> bool:
    """Return True if a base is a path on this machine."""
    try:
        return Path(base).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, or the home of an unknown user
        return False


def folders_beside(base: Path) -> list[Path]:
    """Return the folders that may hold other parts of a single file: its own, and in ComfyUI those for such parts."""
    models = next((folder.parent for folder in base.parents[:3] if folder.name in _COMFYUI[0]), None)
    return [base.parent, *(models / name for name in _COMFYUI[1] if models)]


def find_beside(base: Path, name: str) -> Path | None:
    """Return the file beside a single file that begins with this name (`clip_l`), if one is there."""
    files = [file for folder in folders_beside(base) if name for file in sorted(folder.glob(f"{name}*.safetensors"))]
    return next((file for file in files if file != base and is_here(str(file))), None)


def is_hub_name(base: str) -> bool:
    """Return True if a base is a name on the Hugging Face Hub, not a path on this machine."""
    return bool(hub.NAME.fullmatch(base)) and not is_here(base)


def locate(base: str, revision: str = "") -> tuple[Path, str]:
    """Return the path of a base model, and its commit if it comes from the hub's cache.

    Raises:
        UserError: it is a name on the hub, and not downloaded.
    """
    if base == MICRO:
        return MICRO_FOLDER, ""
    if not is_hub_name(base):
        return Path(base).expanduser() if is_here(base) else Path(base), ""
    try:
        path = hub.cached(base, revision)
    except ValueError:  # a revision that the cache cannot have
        path = None
    if path is None:
        raise UserError(
            "The base model {base!r} is not on this machine.",
            "Download it on the Train tab or with: limner download {base}. Or give a folder or a .safetensors file.",
            base=base,
        )
    return path, hub.commit(path)


def glance(base: str, revision: str = "") -> Base | None:
    """Detect a base model without a network; return None if it is not here or cannot be used."""
    path = Path(base).expanduser() if is_here(base) else None
    try:
        if is_hub_name(base):
            path = hub.cached(base, revision)
        return look(path) if path else None
    except (UserError, OSError, ValueError):  # the latter two for a name or a revision that the hub's cache cannot have
        return None


def look(path: Path) -> Base:
    """Detect the base model at a path.

    Raises:
        UserError: it is not there, or is not a base model that can be trained; it says why.
    """
    if not is_here(str(path)):
        raise UserError("The base model {name!r} does not exist.", REMEDY, name=path.name[:100])
    try:
        return _look_at_folder(path) if path.is_dir() else _look_at_file(path)
    except (ValueError, TypeError, LookupError, AttributeError):  # a value of a kind or a size that no model has
        raise _refusal(path, "its settings or its header are damaged") from None


def _refusal(path: Path, reason: str, /, **values: object) -> UserError:
    reason = _(reason, **values)
    return UserError("The base model {name!r} cannot be used: {reason}.", REMEDY, name=path.name, reason=reason)


def _look_at_folder(folder: Path) -> Base:
    pipeline = read_json(hub.index(folder)).get("_class_name")
    if pipeline is None:
        raise _without_index(folder)
    if not any(spec.pipeline == pipeline for spec in FAMILIES.values()):
        kind = next((kind for start, kind in other_models.PIPELINES.items() if str(pipeline).startswith(start)), "")
        raise _refusal(folder, "it is {kind}", kind=kind or f"a {pipeline}")
    for component in hub.WEIGHTS:
        suffixes = {file.suffix for file in (folder / component).glob("*")}
        if ".bin" in suffixes and ".safetensors" not in suffixes:
            raise UserError(
                "The weights of the base model {name!r} are in .bin files, which can contain programs.",
                "Get the model in safetensors format, or convert it with a program that you trust.",
                name=folder.name,
            )
    denoiser = next(spec.denoiser for spec in FAMILIES.values() if spec.pipeline == pipeline)
    unet = read_json(folder / denoiser / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if not unet or not scheduler:
        part = "UNet" if denoiser == "unet" else denoiser
        raise _refusal(folder, "the config of its {part} or scheduler is missing or damaged", part=part)
    if transformers := [name for name in TRANSFORMERS if FAMILIES[name].pipeline == pipeline]:
        return _look_at_transformer_folder(folder, transformers[0], unet)
    size_conditioned = any(
        FAMILIES[name].pipeline == pipeline and spec.size_conditioned for name, spec in UNETS.items()
    )
    family = _family(folder, size_conditioned, bool(unet.get("use_linear_projection")), unet.get("cross_attention_dim"))
    if unet.get("time_cond_proj_dim"):
        raise _refusal(folder, "it is {kind}", kind=other_models.DISTILLED)
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        raise _refusal(folder, "it is made for inpainting or editing")
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted not in FAMILIES[family].variants:
        raise _refusal(
            folder, "its prediction type is {predicted!r}, which cannot be trained here", predicted=predicted
        )
    names = name_hints.names_of_folder(folder, unet)
    return Base(
        family,
        predicted,
        bool(scheduler.get("rescale_betas_zero_snr")),
        "read from its scheduler's config",
        name_hints.clip_skip(names) if FAMILIES[family].clip_skip else 1,
        name_hints.find_few_step(names, str(scheduler.get("_class_name"))),
        has_vae=(folder / "vae" / "config.json").is_file(),
    )


def _without_index(folder: Path) -> UserError:
    if hub.index(folder).is_file():
        return _refusal(folder, "its {file} is damaged", file=hub.index(folder).name)
    return UserError(
        "The folder {name!r} is not a diffusers model: it has no model_index.json.", REMEDY, name=folder.name
    )


def _look_at_transformer_folder(folder: Path, family: FamilyName, config: Mapping[str, object]) -> Base:
    need = TRANSFORMERS[family].need
    if need and not config.get(need.setting):
        raise _refusal(folder, "it is {kind}", kind=need.otherwise)
    if config.get("in_channels") != TRANSFORMERS[family].config_channels:
        raise _refusal(folder, "it is made for inpainting or editing")
    names = name_hints.names_of_folder(folder, config)
    size = next((size for size in FAMILIES[family].sizes if size.fits(config)), None)
    return Base(
        family,
        FAMILIES[family].first,
        zero_snr=False,
        reason="its family predicts it",
        few_step=name_hints.of_family(names, FAMILIES[family], read_json(hub.index(folder)).get("is_distilled")),
        has_vae=(folder / "vae" / "config.json").is_file(),
        size=size,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON file; {} if it is missing or damaged."""
    try:
        data = foreign_text.read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _family(path: Path, size_conditioned: bool, linear: bool, width: object) -> FamilyName:
    """Return the family by its structure, which holds at any size; the width of the cross-attention must agree."""
    family = next(
        name
        for name, spec in UNETS.items()
        if spec.size_conditioned == size_conditioned and (size_conditioned or spec.linear_projections == linear)
    )
    by_width = {spec.context_width: name for name, spec in UNETS.items()}
    if isinstance(width, int) and by_width.get(width, family) != family:
        raise _refusal(
            path,
            "it looks like {family}, but its cross-attention is {width} wide",
            family=FAMILIES[family].title,
            width=width,
        )
    return family


def _look_at_file(path: Path) -> Base:
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            "The base model {name!r} is not a .safetensors file, and other kinds can contain programs.",
            "Get the model in safetensors format, or convert it with a program that you trust.",
            name=path.name,
        )
    try:
        shapes, metadata = read_header(path)
    except OSError:
        raise _refusal(path, "it cannot be read") from None
    names = name_hints.names(path, metadata)
    transformer = next((name for name, spec in TRANSFORMERS.items() if _has(shapes, spec.key)), None)
    if kind := _other_kind(shapes, names, is_base=transformer is not None):
        raise _refusal(path, "it is {kind}", kind=kind)
    if transformer:
        return _look_at_transformer(path, transformer, shapes, names)
    if not any(key.startswith(DENOISER_KEYS) for key in shapes):
        raise _refusal(path, "it has no denoiser of a known family under the names of the original files")
    if any(key.startswith("edm_") for key in shapes):
        raise _refusal(path, "it was trained as an EDM model, which cannot be trained here")
    if (
        shapes.get(f"{DENOISER_KEYS}input_blocks.0.0.weight", [0, 4])[1]
        != shapes.get(f"{DENOISER_KEYS}out.2.weight", [4])[0]
    ):
        raise _refusal(path, "it is made for inpainting or editing")
    unet = {key: shape for key, shape in shapes.items() if key.startswith(DENOISER_KEYS)}
    width = next((shape[-1] for key, shape in unet.items() if key.endswith("attn2.to_k.weight")), None)
    linear = any(len(shape) == 2 for key, shape in unet.items() if key.endswith("1.proj_in.weight"))
    family = _family(path, f"{DENOISER_KEYS}label_emb.0.0.weight" in shapes, linear, width)
    spec = FAMILIES[family]
    _check_text_encoders(path, spec, shapes, None)
    predicted, reason = _prediction_type_of_file(family, shapes, metadata)
    clip_skip = name_hints.clip_skip(names) if spec.clip_skip else 1
    return Base(
        family,
        predicted,
        "ztsnr" in shapes,
        reason,
        clip_skip,
        name_hints.find_few_step(names),
        not _VAE_KEYS.isdisjoint(shapes),
    )


def _check_text_encoders(path: Path, spec: FamilySpec, shapes: Mapping[str, list[int]], size: Size | None) -> None:
    for encoder in spec.text_encoders:
        inside = not shapes.keys().isdisjoint((encoder.embedding, encoder.old_embedding))
        if inside or find_beside(path, encoder.file_name):
            continue
        if not encoder.file_name:
            raise _refusal(path, "it looks like {family}, but has no {part}", family=spec.title, part=encoder.title)
        raise _without(path, spec.title, encoder.title, encoder.file_name)
    large = spec.encoder_of(size)
    if large and large.needed and large.key not in shapes and not find_beside(path, large.file_name):
        raise _without(path, spec.title, large.title, large.file_name)


def _without(path: Path, family: str, part: str, file: str) -> MissingPartError:
    return MissingPartError(
        "The base model {name!r} looks like {family}, but has no {part}.",
        "Put its file, {file}.safetensors, into the same folder, or, in ComfyUI, into text_encoders. "
        "Or give a folder in diffusers format.",
        name=path.name,
        family=family,
        part=_(part),
        file=file,
    )


def _has(shapes: Mapping[str, list[int]], key: str) -> bool:
    """Return True if a file has a tensor of a transformer, which files of a transformer alone name without a prefix."""
    return key in shapes or f"{DENOISER_KEYS}{key}" in shapes


def _look_at_transformer(path: Path, family: FamilyName, shapes: Mapping[str, list[int]], names: str) -> Base:
    spec, transformer = FAMILIES[family], TRANSFORMERS[family]
    if transformer.need and not _has(shapes, transformer.need.key):
        raise _refusal(path, "it is {kind}", kind=transformer.need.otherwise)
    entry = shapes.get(f"{DENOISER_KEYS}{transformer.entry}", shapes.get(transformer.entry, [0, 0]))
    if entry[1] != transformer.entry_channels:
        raise _refusal(path, "it is made for inpainting or editing")
    size = next((size for size in spec.sizes if all(any(mark in key for key in shapes) for mark in size.marks)), None)
    _check_text_encoders(path, spec, shapes, size)
    return Base(
        family,
        spec.first,
        zero_snr=False,
        reason="its family predicts it",
        few_step=name_hints.of_family(names, spec),
        has_vae=not _VAE_KEYS.isdisjoint(shapes),
        size=size,
    )


def _other_kind(shapes: Mapping[str, list[int]], names: str, *, is_base: bool) -> str:
    """Name a file that is not a base model to train, by its tensors' names and its own; "" if nothing gives it away."""
    if name_hints.predicts_image(names):
        return _("a one-step model of Lightning, which predicts the image, not its noise, and cannot be trained here")
    if (
        len(shapes.get(f"{DENOISER_KEYS}label_emb.0.0.weight", ())) == 2
        and shapes[f"{DENOISER_KEYS}label_emb.0.0.weight"][1] == 2560
    ):
        return _("the refiner of Stable Diffusion XL")
    if {"emb_params", "clip_g"} & shapes.keys():
        return _("an embedding (textual inversion)")
    tables: list[Mapping[str, tuple[str, ...]]] = [other_models.FILES]
    if not is_base:
        tables.append(other_models.PARTS)
        if not any(key.startswith(DENOISER_KEYS) for key in shapes):
            tables.append(other_models.PARTS_WITHOUT_DENOISER)
    for kind, pattern in other_models.NAMED.items():
        if re.search(pattern, names, re.IGNORECASE):
            return kind
    for kind, markers in itertools.chain(*(table.items() for table in tables)):
        if any(marker in key for key in shapes for marker in markers):
            return kind
    return ""


def _prediction_type_of_file(
    family: FamilyName, shapes: Mapping[str, list[int]], metadata: Mapping[str, str]
) -> tuple[PredictionType | None, str]:
    """Return what a single file predicts and what says so: marks that trainers add, or else the family's custom."""
    if "v_pred" in shapes:
        return "v_prediction", "marked v_pred in the file"
    by_metadata: dict[str | None, PredictionType] = {"v": "v_prediction", "epsilon": "epsilon"}
    if named := by_metadata.get(metadata.get("modelspec.prediction_type")):
        return named, "named in the file's metadata"
    if "ztsnr" in shapes:
        return None, "the file is marked ztsnr, which is for v-prediction, but not v_pred"
    title = FAMILIES[family].title
    if FAMILIES[family].ambiguous:
        return None, f"the file does not say; both variants of {title} look alike"
    return "epsilon", f"the file does not say otherwise, and {title} predicts noise"


def read_header(path: Path) -> Header:
    """Shapes by tensor name, and the metadata, of a safetensors file whose length fits its header; read once."""
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)  # each check of settings asks for it, and that of XL takes 35 ms
def _read_header(path: Path, size: int, _modified: int) -> Header:
    damaged = _refusal(path, "it is not a safetensors file, or is damaged")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise damaged
        if length > MAX_HEADER:
            raise _refusal(path, "the header of its file is larger than {size} MB", size=MAX_HEADER // 2**20)
        try:
            header = foreign_text.parse_header(file.read(length))
            metadata = header.pop("__metadata__", {})
            shapes = {key.removeprefix(NET): list(entry["shape"]) for key, entry in header.items()}
            end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except foreign_text.TooManyTensorsError:
            raise _refusal(path, "its file has more than {number} tensors", number=MAX_TENSORS) from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise damaged from None
    if 8 + length + end != size:
        raise _refusal(path, "it is cut off, or damaged")
    return shapes, metadata if isinstance(metadata, dict) else {}
