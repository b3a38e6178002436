"""The forms in which an adapter is written for other programs: kohya's and PEFT's, their metadata and hashes.

Kohya's: `lora_unet_` + the name of a module (for XL the original one), `lora_te_text_model_...` for the text encoder
(for XL `lora_te1_` and `lora_te2_`), the real alpha in every module, no other tensors. PEFT's: dotted names, no alpha
tensors; diffusers takes the alpha from one metadata entry. The converter of diffusers is not used: it writes alpha =
rank, whatever alpha was.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from trainer import __version__
from trainer.adapter_files import low_rank
from trainer.adapter_files.reader import PEFT_METADATA, AdapterFile, Module, kind, tensors_of
from trainer.base_models import layer_names
from trainer.base_models.detect import FamilyName
from trainer.base_models.layer_names import Place
from trainer.errors import UserError

Form = Literal["kohya", "peft"]
Precision = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PEFT_NAME = "pytorch_lora_weights.safetensors"
# What programs go by when they load a file; the rest tells people and other tools about it.
NEEDED = (
    "modelspec.sai_model_spec", "modelspec.architecture", "ss_base_model_version", "ss_v2", "ss_network_module",
    "ss_network_dim", "ss_network_alpha", "ss_network_args",
)  # fmt: skip
# What a file that was made of others has from the first of them, and what it has from all.
_KEPT = (
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type",
    "modelspec.resolution", "ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash",
    "ss_new_sd_model_hash", "ss_resolution", "ss_clip_skip",
)  # fmt: skip
_JOINED = {
    "modelspec.trigger_phrase": "modelspec.trigger_phrase", "modelspec.title": "modelspec.merged_from",
    "modelspec.author": "modelspec.author", "modelspec.license": "modelspec.license",
}  # fmt: skip


def kohya(modules: Mapping[str, Module], precision: Precision) -> dict[str, Tensor]:
    """Tensors of kohya's form; the alphas stay in fp32, in which every program reads them.

    Raises:
        UserError: a value is too large for the precision.
    """
    return _cast(tensors_of(modules), precision)


def peft(
    modules: Mapping[str, Module], precision: Precision, family: FamilyName | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of PEFT's form, and the metadata that diffusers needs for it.

    LoHa and LoKr are written as the LoRA of the same change, which diffusers reads; their rank is larger then.

    Raises:
        UserError: a value is too large for the precision.
    """
    tensors, parts = {}, dict[str, list[tuple[Place, Module]]]()
    for name, module in modules.items():
        place = place_of(name)
        if kind(module) in ("LoHa", "LoKr"):
            module = low_rank.cut(low_rank.factors(module, kernel_of(name, module, family))).pair.module()
        parts.setdefault(place.component, []).append((place, module))
        tensors[f"{layer_names.peft(place)}.lora_A.weight"] = module.parts["lora_down.weight"]
        tensors[f"{layer_names.peft(place)}.lora_B.weight"] = module.parts["lora_up.weight"]
        if "dora_scale" in module.parts:
            scale = module.parts["dora_scale"]
            shape = (1, -1, 1, 1) if scale.dim() == 4 else (-1,)
            tensors[f"{layer_names.peft(place)}.lora_magnitude_vector.weight"] = scale.reshape(shape)
    told = {f"{component}.{key}": value for component, found in parts.items() for key, value in _peft(found).items()}
    return _cast(tensors, precision), {PEFT_METADATA: json.dumps(told, sort_keys=True)}


def _peft(found: list[tuple[Place, Module]]) -> dict[str, Any]:
    """Settings of peft for one component; what most modules have is the rule, the others are exceptions by path."""
    kinds = {kind(module) for _, module in found}
    if "DoRA" in kinds and len(kinds) > 1:  # peft has one switch for all layers of a component
        raise UserError("Only some layers of this adapter are DoRA, for which PEFT has no form.", "Write kohya's form.")
    rank = Counter(module.rank for _, module in found).most_common(1)[0][0]
    alpha = Counter(module.alpha for _, module in found).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(place.path for place, _ in found),
        "rank_pattern": {place.path: module.rank for place, module in found if module.rank != rank},
        "alpha_pattern": {place.path: module.alpha for place, module in found if module.alpha != alpha},
        "use_dora": "DoRA" in kinds,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _cast(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    cast = {
        key: tensor.to(torch.float32 if key.endswith(".alpha") else DTYPES[precision]).contiguous()
        for key, tensor in tensors.items()
    }
    lost = [key for key, tensor in cast.items() if not tensor.isfinite().all()]
    if lost:
        raise UserError(
            "The adapter is not finite in {precision} ({key}).",
            "Write it in bf16 or fp32.",
            precision=precision,
            key=lost[0],
        )
    return cast


def place_of(name: str) -> Place:
    """The place of a module by its name in kohya's form."""
    place = layer_names.read(name).place
    assert place  # made by `layer_names.kohya`
    return place


def kernel_of(name: str, module: Module, family: FamilyName | None) -> tuple[int, ...]:
    """The shape behind the rows of the weight that a LoHa or LoKr changes, which its flat parts do not show.

    Around attention, 1.x has convolutions of 1 x 1 where the other families have linear layers.
    """
    path = place_of(name).path
    size = layer_names.weight_size({ending: tuple(part.shape) for ending, part in module.parts.items()})
    assert size  # read as a module, so that its parts fit together
    columns = size[1]
    if path.endswith((".conv1", ".conv2", ".conv", "conv_in", "conv_out")):
        return (columns // 9, 3, 3)
    around = path.endswith((".proj_in", ".proj_out")) and family not in ("sd21", "sdxl")
    return (columns, 1, 1) if around or path.endswith(".conv_shortcut") else (columns,)


def write(
    modules: Mapping[str, Module],
    metadata: Mapping[str, str],
    *,
    form: Form,
    precision: Precision,
    strip: bool = False,
    family: FamilyName | None = None,
) -> bytes:
    """A whole file of modules; the family, where it is known, tells the shapes of what is converted.

    Raises:
        UserError: a value is too large for the precision.
    """
    tensors, more = (kohya(modules, precision), {}) if form == "kohya" else peft(modules, precision, family)
    told = {key: text for key, text in metadata.items() if key != PEFT_METADATA and (not strip or key in NEEDED)}
    data = save(tensors, {**told, **more})
    return data if strip else with_hashes(data)


def with_hashes(data: bytes) -> bytes:
    """A safetensors file with the two hashes added that programs know it by.

    `sshs_model_hash` is the SHA-256 of all bytes after the header. `sshs_legacy_hash` is the first 8 digits of the
    SHA-256 of 64 KiB at offset 1 MiB of the file as it would be with the training metadata (`ss_`) alone.
    """
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__", {})
    plain = _file({key: text for key, text in metadata.items() if key.startswith("ss_")}, header, body)
    hashes = {
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(plain[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
    return _file({**metadata, **hashes}, header, body)


def _file(metadata: Mapping[str, str], header: Mapping[str, Any], body: bytes) -> bytes:
    # As the safetensors library writes it: what is not ASCII stands as it is, and the data begin at a multiple of 8.
    table = {"__metadata__": metadata, **header} if metadata else header
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def inherited(sources: list[AdapterFile], modules: Mapping[str, Module], title: str) -> dict[str, str]:
    """Metadata of a file that was made of others: what it is for and of what it was made, but nobody's recipe."""
    first = for_family(sources[0]) if sources else {}
    joined = {
        new: ", ".join(dict.fromkeys(text for file in sources if (text := file.metadata.get(key))))
        for key, new in _JOINED.items()
    }
    values = {
        **{key: first[key] for key in _KEPT if key in first},
        **joined,
        "modelspec.title": title,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ss_output_name": title,
        **network(modules),
        "limner.version": __version__,
    }
    return {key: text for key, text in values.items() if text}


def for_family(file: AdapterFile) -> dict[str, str]:
    """A file's metadata; what programs know its family by is added if it does not say."""
    if file.family is None or file.metadata.get("ss_base_model_version"):
        return dict(file.metadata)
    prediction = file.metadata.get("modelspec.prediction_type", "epsilon")
    return {**of_family(file.family, prediction), **network(file.modules), **file.metadata}


def of_family(family: FamilyName, prediction: str) -> dict[str, str]:
    """Metadata that say what base models a file is for.

    Args:
        family: of the base.
        prediction: what it predicts: "epsilon" or "v".
    """
    large = prediction == "v"
    architecture = {
        "sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base",
        "sd21": f"stable-diffusion-v2-{'768-v' if large else '512'}",
    }[family]  # fmt: skip
    version = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0", "sd21": "sd_v2_768_v" if large else "sd_v2_512"}[family]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": prediction,
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd21"),
    }


def network(modules: Mapping[str, Module]) -> dict[str, str]:
    """The metadata under which programs know how a file is built; of several ranks or alphas, the most common."""
    kinds = {kind(module) for module in modules.values()}
    algorithm = {"DoRA": "lora", "LoHa": "loha", "LoKr": "lokr"}
    other = next((algorithm[one] for one in sorted(kinds) if one in algorithm), "")
    arguments: dict[str, Any] = {"algo": other} | ({"dora_wd": True} if "DoRA" in kinds else {}) if other else {}
    return {
        "ss_network_module": "lycoris.kohya" if other else "networks.lora",
        "ss_network_dim": str(Counter(module.rank for module in modules.values()).most_common(1)[0][0]),
        "ss_network_alpha": str(Counter(module.alpha for module in modules.values()).most_common(1)[0][0]),
        "ss_network_args": json.dumps(arguments),
    }
