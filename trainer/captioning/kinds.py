"""Kinds of caption models: how each is recognized, which options it understands, and models that work. Torch-free.

A kind follows from what a model's own config says, never from its name.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from trainer import foreign_text
from trainer.base_models import detect, hub
from trainer.base_models.hub import RemoteFile
from trainer.errors import UserError
from trainer.i18n import _

CONFIG = "config.json"
TAGS = "selected_tags.csv"  # the tags of a WD14 tagger
ONNX = "model.onnx"
INDEX = "model.safetensors.index.json"
SUGGESTED = "Salesforce/blip-image-captioning-large"
REMEDY = _("Choose a model that works, such as {model}: limner download {model}", model=SUGGESTED)
SERVED = _("If it answers prompts, run it with a server such as llama.cpp, and give the address of the server.")


@dataclass(frozen=True)
class Kind:
    """A kind of caption models: the architectures that it covers, and the settings that its models understand.

    `types` are those of transformers that such a model and its parts may have: some others build what a file names.
    """

    name: str
    architectures: tuple[str, ...]
    types: re.Pattern[str]
    options: tuple[str, ...]
    tokens: int = 0  # maximum length of a caption unless it is set


DESCRIBER = Kind(
    "describer",
    ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration", "GitForCausalLM"),
    re.compile(
        "blip|blip_text_model|blip_vision_model|blip-2|blip_2_qformer|blip_2_vision_model|opt|t5|git|git_vision_model"
    ),
    ("tokens",),
    tokens=40,
)
FLORENCE = Kind(
    "florence",
    ("Florence2ForConditionalGeneration",),
    re.compile("florence2|florence_vision|bart"),
    ("florence_task", "tokens"),
    tokens=256,
)
# Class by type; that of the type `timm_wrapper` is not among them.
_CLASSIFIERS = """
    beit=Beit bit=Bit convnext=ConvNext convnextv2=ConvNextV2 cvt=Cvt data2vec-vision=Data2VecVision deit=DeiT
    dinov2=Dinov2 dinov2_with_registers=Dinov2WithRegisters efficientnet=EfficientNet focalnet=FocalNet hiera=Hiera
    levit=Levit mobilenet_v1=MobileNetV1 mobilenet_v2=MobileNetV2 mobilevit=MobileViT mobilevitv2=MobileViTV2
    poolformer=PoolFormer pvt=Pvt pvt_v2=PvtV2 regnet=RegNet resnet=ResNet segformer=Segformer siglip=Siglip
    siglip2=Siglip2 swiftformer=SwiftFormer swin=Swin swinv2=Swinv2 vit=ViT vit_msn=ViTMSN
"""
_CLASS_OF_TYPE = dict(pair.split("=") for pair in _CLASSIFIERS.split())
CLASSIFIER = Kind(
    "classifier",
    tuple(f"{name}ForImageClassification" for name in _CLASS_OF_TYPE.values()),
    re.compile("|".join((*_CLASS_OF_TYPE, "siglip2?_(vision|text)_model"))),
    ("threshold", "blacklist"),
)
WD14 = Kind(  # recognized by `TAGS`
    "wd14", (), re.compile(""), ("threshold", "character_threshold", "categories", "blacklist")
)
SERVER = Kind("server", (), re.compile(""), ("prompt", "tokens"), tokens=256)
LEAST_TIMM = (1, 0, 26)  # those before unpickle a file that a model names


@dataclass(frozen=True)
class WellKnown:
    """A caption model that is known to work; the size of its download in GB, its license, and its kind."""

    model: str
    title: str
    size: float
    license: str
    kind: Kind


# Sizes from the numbers of parameters and their precision; licenses as the repositories name them.
WELL_KNOWN = (
    WellKnown(SUGGESTED, _("BLIP large: a sentence"), 1.9, "BSD-3-Clause", DESCRIBER),
    WellKnown("florence-community/Florence-2-large-ft", _("Florence-2: one to many sentences"), 1.6, "MIT", FLORENCE),
    WellKnown("SmilingWolf/wd-vit-tagger-v3", _("WD ViT tagger: tags, for drawings"), 0.4, "Apache-2.0", WD14),
    WellKnown("SmilingWolf/wd-eva02-large-tagger-v3", _("WD EVA02 tagger: tags, best"), 1.3, "Apache-2.0", WD14),
)


def find(model: str, revision: str = "") -> Path | None:
    """Return the folder of a caption model on this machine, also in the hub's cache; None if it is not here."""
    if not is_hub_name(model):
        folder = Path(model).expanduser()
        return folder if detect.is_here(model) and folder.is_dir() else None
    for name in (CONFIG, TAGS):
        path = try_to_load_from_cache(model, name, revision=revision or None)
        if isinstance(path, str) and _has_weights(Path(path).parent):
            return Path(path).parent
    return None


def is_hub_name(model: str) -> bool:
    """Return True if a caption model is named as a repository on the Hugging Face Hub, not as a path."""
    return detect.is_hub_name(model) and not hub.split(model)[1]


def _has_weights(folder: Path) -> bool:
    """Return True if a model is complete in the hub's cache: of weights in several files, each must be there."""
    if (index := folder / INDEX).is_file():
        try:
            return all((folder / part).is_file() for part in foreign_text.read_json(index)["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged
            return False
    return any(folder.glob("*.safetensors")) or (folder / ONNX).is_file()


def look(folder: Path) -> Kind:
    """Return the kind of the caption model in a folder.

    Raises:
        UserError: it is not a model that writes captions; the sentence names its architecture.
    """
    if (folder / TAGS).is_file():
        return WD14
    config = read_config(folder)
    architectures = [name for name in config.get("architectures") or () if isinstance(name, str)]
    for kind in (DESCRIBER, FLORENCE, CLASSIFIER):
        if set(architectures) & set(kind.architectures):
            _check_types(config, kind)
            return kind
    architecture = ", ".join(architectures) or str(config.get("model_type") or config.get("architecture") or "")
    if not architecture:
        raise UserError("The folder {name!r} has no model that writes captions.", REMEDY, name=folder.name[:100])
    raise UserError(
        "Limner cannot write captions with a model of the architecture {architecture}.",
        SERVED if "vision_config" in config else REMEDY,
        architecture=architecture[:200],
    )


def architecture(folder: Path, kind: Kind) -> str:
    """Return the class of transformers that a model of a kind names: one of those that the kind covers."""
    named = read_config(folder).get("architectures") or ()
    return next(name for name in kind.architectures if name in named)


def _check_types(config: object, kind: Kind) -> None:
    """Check the types of a model and its parts, by which transformers chooses the classes that it makes.

    Raises:
        UserError: one is not of the kind.
    """
    children: Iterable[object] = ()
    if isinstance(config, dict):
        named = config.get("model_type", "")
        if named and not (isinstance(named, str) and kind.types.fullmatch(named)):
            raise UserError(
                "Limner cannot write captions with a model of the type {type}.", REMEDY, type=str(named)[:200]
            )
        children = config.values()
    elif isinstance(config, list):
        children = config
    for child in children:
        _check_types(child, kind)


def timm_version() -> tuple[int, ...]:
    """Return the version of timm that is installed; () = none."""
    try:
        return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version("timm"))[:3])
    except importlib.metadata.PackageNotFoundError:
        return ()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a model; empty if it cannot be read."""
    try:
        config = foreign_text.read_json(folder / CONFIG)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def select(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a repository that a caption model needs, its weights first; [] for another repository.

    Weights are safetensors files; of a WD14 tagger, its ONNX file unless timm is installed.
    """
    top = [file for file in files if not file.folder]
    names = {file.name for file in top}
    if not names & {CONFIG, TAGS} or names & {*hub.INDEXES}:
        return []
    ending = ".safetensors"
    if {TAGS, ONNX} <= names and timm_version() < LEAST_TIMM:
        ending = ONNX
    weights = [file for file in top if file.name.endswith(ending)]
    settings = [file for file in top if file.name.endswith((".json", ".txt", ".csv"))]
    return [*weights, *sorted(settings, key=lambda file: file.name == CONFIG)] if weights else []
