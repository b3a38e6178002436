"""Kinds of caption models: how each is recognized, which options it understands, and models that work. Torch-free.

A kind follows from what a model's own config says, never from its name.
"""

import importlib.util
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Kind:
    """A kind of caption models: the architectures that it covers, and the settings that its models understand."""

    name: str
    architectures: tuple[str, ...]
    options: tuple[str, ...]
    tokens: int = 0  # maximum length of a caption unless it is set


DESCRIBER = Kind(
    "describer",
    ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration", "GitForCausalLM"),
    ("tokens",),
    tokens=40,
)
FLORENCE = Kind("florence", ("Florence2ForConditionalGeneration",), ("florence_task", "tokens"), tokens=256)
CHAT = Kind(
    "chat",
    ("LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    ("prompt", "tokens"),
    tokens=256,
)
CLASSIFIER = Kind("classifier", (), ("threshold", "blacklist"))  # any ...ForImageClassification
WD14 = Kind("wd14", (), ("threshold", "character_threshold", "categories", "blacklist"))  # recognized by `TAGS`
SERVER = Kind("server", (), ("prompt", "tokens"), tokens=256)


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
    WellKnown("Qwen/Qwen2.5-VL-3B-Instruct", _("Qwen2.5-VL 3B: answers a prompt"), 7.5, "Qwen Research", CHAT),
    WellKnown("Qwen/Qwen2.5-VL-7B-Instruct", _("Qwen2.5-VL 7B: answers a prompt"), 16.6, "Apache-2.0", CHAT),
    WellKnown("fancyfeast/llama-joycaption-beta-one-hf-llava", _("JoyCaption: answers a prompt"), 17.0, "Llama 3.1",
              CHAT),
)  # fmt: skip


def find(model: str, revision: str = "") -> Path | None:
    """Return the folder of a caption model on this machine, also in the hub's cache; None if it is not here."""
    if not is_hub_name(model):
        folder = Path(model).expanduser()
        return folder if detect.is_here(model) and folder.is_dir() else None
    for name in (CONFIG, TAGS):
        found = try_to_load_from_cache(model, name, revision=revision or None)
        if isinstance(found, str) and _has_weights(Path(found).parent):
            return Path(found).parent
    return None


def is_hub_name(model: str) -> bool:
    """Tell whether a caption model is named as a repository on the Hugging Face Hub, not as a path on this machine."""
    return detect.is_hub_name(model) and not hub.split(model)[1]


def _has_weights(folder: Path) -> bool:
    """Tell whether a model is complete in the hub's cache: of weights in several files, each must be there."""
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
    for kind in (DESCRIBER, FLORENCE, CHAT):
        if set(architectures) & set(kind.architectures):
            return kind
    if any("ForImageClassification" in name for name in architectures):
        return CLASSIFIER
    architecture = ", ".join(architectures) or str(config.get("model_type") or config.get("architecture") or "")
    if not architecture:
        raise UserError("The folder {name!r} has no model that writes captions.", REMEDY, name=folder.name[:100])
    raise UserError(
        "Limner cannot write captions with a model of the architecture {architecture}.",
        REMEDY,
        architecture=architecture[:200],
    )


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
    if not names & {CONFIG, TAGS} or hub.INDEX in names:
        return []
    ending = ".safetensors"
    if {TAGS, ONNX} <= names and not importlib.util.find_spec("timm"):
        ending = ONNX
    weights = [file for file in top if file.name.endswith(ending)]
    settings = [file for file in top if file.name.endswith((".json", ".txt", ".csv", ".jinja"))]
    return [*weights, *sorted(settings, key=lambda file: file.name == CONFIG)] if weights else []
