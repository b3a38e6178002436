"""Summary of an adapter file, from its header and small tensors alone; needs no torch and loads no model."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainer.adapter_files.safetensors_reader import Container
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.detect import TITLES, FamilyName
from trainer.base_models.layer_names import Module, Shape

COVER = "ssmd_cover_images"
MAX_COVER = 4 * 2**20
_WIDTHS: dict[int, FamilyName] = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
RECIPE = {
    "optimizer": "ss_optimizer", "learning rate": "ss_learning_rate", "schedule": "ss_lr_scheduler",
    "steps": "ss_steps", "resolution": "ss_resolution", "seed": "ss_seed", "precision": "ss_mixed_precision",
    "base": "ss_sd_model_name", "min-SNR": "ss_min_snr_gamma",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One adapted layer of a file: its name there, and the keys of its tensors by their endings in kohya's words."""

    module: Module
    parts: dict[str, str]

    @property
    def kind(self) -> str:
        """LoRA, DoRA, LoHa or LoKr; "" if the tensors make none of these."""
        if "dora_scale" in self.parts:
            return "DoRA"
        starts = {"lora_": "LoRA", "hada_": "LoHa", "lokr_": "LoKr"}
        return next((kind for start, kind in starts.items() if any(one.startswith(start) for one in self.parts)), "")


def layers(file: Container) -> tuple[list[Layer], list[str]]:
    """The layers of a file, and the keys that belong to none, both in the order of the header."""
    found: dict[str, dict[str, str]] = {}
    strange = []
    for key in file.entries:
        name, ending = layer_names.split(key)
        if ending and (layer_names.read(name).place or name.startswith(layer_names.PREFIXES)):
            found.setdefault(name, {})[ending] = key
        else:
            strange.append(key)
    return [Layer(layer_names.read(name), parts) for name, parts in found.items()], strange


def shapes(file: Container, layer: Layer) -> dict[str, Shape]:
    """Shapes of a layer's tensors by their endings."""
    return {ending: file.entries[key].shape for ending, key in layer.parts.items() if ending != "alpha"}


def width_of(file: Container, found: list[Layer]) -> tuple[FamilyName | None, str]:
    """The family that the sizes tell, and by which layer; None where they are those of no published model."""
    for layer in found:
        place, size = layer.module.place, layer_names.weight_size(shapes(file, layer))
        if place and size and ".attn2.to_k" in place.path and size[1] in _WIDTHS:
            return _WIDTHS[size[1]], layer.module.name
    widths: dict[str, int] = {}
    for layer in found:
        place, size = layer.module.place, layer_names.weight_size(shapes(file, layer))
        if place and size and place.path.endswith("self_attn.q_proj"):
            widths.setdefault(place.component, size[1])
    if widths.get("text_encoder_2") == 1280:
        return "sdxl", "the second text encoder"
    first = widths.get("text_encoder")
    if first == 768 and any(layer.module.prefix == "lora_te1_" for layer in found):
        return None, ""  # of SD 1.x, wrongly named, or of XL without its second encoder
    return ({768: "sd15", 1024: "sd21"}.get(first or 0), "the text encoder")  # type: ignore[return-value]


def named_family(metadata: dict[str, str]) -> FamilyName | None:
    """The family that the metadata name."""
    told = (metadata.get("modelspec.architecture", ""), metadata.get("ss_base_model_version", ""))
    starts: dict[FamilyName, tuple[str, ...]] = {
        "sdxl": ("stable-diffusion-xl", "sdxl"), "sd21": ("stable-diffusion-v2", "sd_v2"),
        "sd15": ("stable-diffusion-v1", "sd_v1", "sd_1"),
    }  # fmt: skip
    for text in told:
        for family, beginnings in starts.items():
            if text.startswith(beginnings):
                return family
    return "sd21" if metadata.get("ss_v2") == "True" else None


def family(file: Container, found: list[Layer]) -> FamilyName | None:
    """The family of base models that a file is for: by its sizes, its metadata, or the names of its layers.

    None if it has nothing that one of the families has alone.
    """
    by_width = width_of(file, found)[0]
    if by_width or named_family(file.metadata):
        return by_width or named_family(file.metadata)
    for layer in found:
        place = layer.module.place
        deep = place and any(f"transformer_blocks.{number}." in place.path for number in range(1, 10))
        if deep or layer.module.prefix in ("lora_te1_", "lora_te2_", "text_encoder_2."):
            return "sdxl"
    for layer in found:
        if layer.module.place and layer.module.place.path.endswith(".proj_in") and layer.kind == "LoRA":
            return "sd15" if any(len(shape) == 4 for shape in shapes(file, layer).values()) else "sd21"
    return "sdxl" if any(layer.module.naming == "original" for layer in found) else None


def model(file: Container, found: list[Layer], of: FamilyName | None) -> str:
    """Return the known model whose layers the file's fit best, by name and shape; "" if less than half of them do."""
    best, most = "", len(found) / 2
    for name, (its, _) in layer_shapes.MODELS.items():
        if of not in (its, None):
            continue
        known = layer_shapes.known(name)
        count = sum(fits(file, layer, known) for layer in found)
        if count > most:
            best, most = name, count
    return best


def fits(file: Container, layer: Layer, known: Mapping[str, Shape]) -> bool:
    """Tell whether a model has the layer in this shape."""
    place = layer.module.place
    weight = known.get(f"{place.component}:{place.path}") if place else None
    if not weight:
        return False
    flat = (weight[0], math.prod(weight[1:]))
    return layer_names.weight_size(shapes(file, layer)) == flat


def describe(file: Container) -> dict[str, Any]:
    """Summarize an adapter file for people, ready for JSON."""
    found, strange = layers(file)
    text = [layer for layer in found if layer.module.place and layer.module.place.component != "unet"]
    told, of = file.metadata, family(file, found)
    return {
        "family": TITLES[of] if of else "unknown",
        "architecture": told.get("modelspec.architecture", "unknown"),
        "base": told.get("ss_base_model_version", "unknown"),
        "form": "PEFT/diffusers" if any(layer.module.naming == "dotted" for layer in found) else "kohya",
        "kind": " and ".join(sorted({layer.kind or "unknown" for layer in found})) or "none",
        "modules": len(found),
        "unet_modules": len(found) - len(text),
        "text_encoder_modules": len(text),
        "unknown_keys": len(strange),
        "ranks": sorted({rank for layer in found if (rank := rank_of(file, layer))}),
        "alphas": sorted({file.number(layer.parts["alpha"]) for layer in found if "alpha" in layer.parts}),
        "precision": sorted(
            {
                _DTYPES.get(file.entries[key].dtype, file.entries[key].dtype)
                for layer in found
                for ending, key in layer.parts.items()
                if ending != "alpha"
            }
        ),
        "finite": all(file.is_finite(key) for key in file.entries),
        "bytes": len(file.data),
        "blocks": _blocks(file, found),
        "title": told.get("modelspec.title", ""),
        "trigger": told.get("modelspec.trigger_phrase", ""),
        "steps": told.get("ss_steps", ""),
        "pictures": told.get("ss_num_train_images", ""),
        "begun": _date(told.get("ss_training_started_at", "")),
        "trained": told.get("modelspec.date", "") or _date(told.get("ss_training_finished_at", "")),
        "recipe": {name: told[key] for name, key in RECIPE.items() if told.get(key, "None") != "None"},
        "config": told.get("limner.config", ""),
        "cover": bool(cover(told)),
        "data_sha256": told.get("sshs_model_hash", ""),
    }


def rank_of(file: Container, layer: Layer) -> int:
    """A layer's rank; 0 if it has none."""
    for ending in ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if ending in layer.parts and file.entries[layer.parts[ending]].shape:
            return file.entries[layer.parts[ending]].shape[0]
    return 0


def _blocks(file: Container, found: list[Layer]) -> dict[str, int]:
    """Bytes of the tensors in each block, in the order of the model."""
    sizes: Counter[str] = Counter()
    for layer in found:
        entries = [file.entries[key] for key in layer.parts.values()]
        block = layer.module.place.block if layer.module.place else "unknown"
        sizes[block] += sum(entry.end - entry.begin for entry in entries)
    order = ("text_encoder", "text_encoder_2", "down_blocks", "mid_block", "up_blocks", "outside", "unknown")
    return dict(sorted(sizes.items(), key=lambda one: (order.index(one[0].partition(".")[0]), one[0])))


def _date(seconds: str) -> str:
    try:
        return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""


def cover(metadata: dict[str, str]) -> str:
    """The cover picture as base64 text of a PNG, JPEG or WebP; "" if there is none."""
    try:
        pictures = json.loads(metadata.get(COVER, "[]"))
    except (ValueError, RecursionError):
        pictures = []
    first = pictures[0] if isinstance(pictures, list) and pictures else ""
    thumbnail = metadata.get("modelspec.thumbnail", "").partition(";base64,")
    found = first if isinstance(first, str) and first else thumbnail[2]
    known = found.startswith(("iVBOR", "/9j/", "UklGR")) and len(found) <= MAX_COVER
    return found if known and re.fullmatch(r"[A-Za-z0-9+/]+=*", found) else ""
