"""Write an adapter in the formats of other programs, kohya's and PEFT's, with their metadata and hashes.

Kohya's: `lora_unet_` + the name of a module (for XL the original one), `lora_te_text_model_...` for the text encoder
(for XL `lora_te1_` and `lora_te2_`), the real alpha in every module, no other tensors. PEFT's: dotted names, no alpha
tensors; diffusers takes the alpha from one metadata entry. The converter of diffusers is not used: it writes alpha =
rank, whatever alpha was.
"""

import hashlib
import io
import json
from collections import Counter, UserDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, Any, Literal

import torch
from torch import Tensor

from trainer import __version__
from trainer.adapter_files import joined, low_rank, safetensors_reader
from trainer.adapter_files.family_rules import METADATA
from trainer.adapter_files.modules import Lora, Module, bias_change, by_input, kind, size
from trainer.adapter_files.peft_settings import METADATA as PEFT_METADATA
from trainer.adapter_files.reader import AdapterFile, tensors_of
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import FAMILIES, TRANSFORMERS, FamilyName
from trainer.base_models.spec import PredictionType, Size
from trainer.errors import UserError

Form = Literal["kohya", "peft"]
Precision = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
PEFT_NAME = "pytorch_lora_weights.safetensors"
# Metadata that programs need to load a file; the rest informs people and other tools.
NEEDED = (
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_v2",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
# Metadata that a file made of others takes from the first of them, and from all of them.
_KEPT = (
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "ss_base_model_version",
    "ss_v2",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_resolution",
    "ss_clip_skip",
)
_JOINED = {
    "modelspec.trigger_phrase": "modelspec.trigger_phrase",
    "modelspec.title": "modelspec.merged_from",
    "modelspec.author": "modelspec.author",
    "modelspec.license": "modelspec.license",
}
# Kinds by the names that LyCORIS has for them.
_ALGORITHMS = {
    "DoRA": "lora",
    "LoHa": "loha",
    "LoHa with DoRA": "loha",
    "LoKr": "lokr",
    "LoKr with DoRA": "lokr",
    "GLoRA": "glora",
    "OFT": "diag-oft",
    "BOFT": "boft",
    "IA3": "ia3",
    "full": "full",
}


class Draft(UserDict[str, Module]):
    """A new file, filled layer by layer with `draft[name] = module`, of which it keeps the shapes alone.

    The cast values go to `body`, a temporary file, because the header of a file needs the shapes of all tensors.

    Attributes:
        joins: the layers of a transformer are joined as in its original code, which needs plain LoRA throughout.
    """

    def __init__(
        self, body: IO[bytes], form: Form, precision: Precision, family: FamilyName | None, *, joins: bool = True
    ) -> None:
        super().__init__()
        self._body, self._form, self._precision, self._family = body, form, precision, family
        self._tensors: dict[str, tuple[Tensor, int]] = {}  # without values, and where these are in the body
        self._joins = joins and form == "kohya" and family in TRANSFORMERS
        self._waiting: dict[str, dict[str, Module]] = {}  # parts of joined layers that lack other parts

    def __setitem__(self, name: str, module: Module) -> None:
        """Append the tensors of a module.

        Raises:
            UserError: a value is too large for the precision, or a kind cannot be written in this format.
            OSError: the disk is full.
        """
        if self._form == "peft":
            module = _for_peft(name, module, self._family)
            self._append(_peft_tensors(name, module, self._family))
        elif self._joins and self._family:
            whole, count = joined.whole_of(name, self._family)
            parts = self._waiting.setdefault(whole, {})
            parts[name] = module
            if len(parts) == count:
                self._append(tensors_of(joined.as_original(self._waiting.pop(whole), self._family)))
        else:
            self._append(tensors_of({joined.unjoined(name, self._family): module}))
        self.data[name] = replace(module, parts={ending: part.to("meta") for ending, part in module.parts.items()})

    def _append(self, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            cast = _cast(key, tensor, self._precision)
            self._tensors[key] = cast.to("meta"), self._body.tell()
            self._body.write(cast.reshape(-1).view(torch.uint8).numpy().data)

    def chunks(self, metadata: Mapping[str, str], *, strip: bool = False) -> Iterator[bytes]:
        """Yield the bytes of the file: its header, then one tensor at a time.

        Raises:
            UserError: the modules cannot be written together in this format.
        """
        if self._family:
            for parts in self._waiting.values():
                self._append(tensors_of(joined.as_original(parts, self._family)))
            self._waiting.clear()
        kept = {key: text for key, text in metadata.items() if key != PEFT_METADATA and (not strip or key in NEEDED)}
        if self._form == "peft":
            kept |= {PEFT_METADATA: json.dumps(_peft_settings(self.data, self._family), sort_keys=True)}
        if not strip:
            kept |= self._hashes(kept)
        yield self._header(kept)
        yield from self._values()

    def _ordered(self) -> list[str]:
        """Return the keys as the safetensors library orders them: the widest numbers first, so that all are aligned."""
        return sorted(self._tensors, key=lambda key: (-self._tensors[key][0].itemsize, key))

    def _values(self) -> Iterator[bytes]:
        for key in self._ordered():
            tensor, start = self._tensors[key]
            self._body.seek(start)
            yield self._body.read(tensor.nbytes)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for key in self._ordered():
            tensor, _start = self._tensors[key]
            begin, end = end, end + tensor.nbytes
            header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        return safetensors_reader.packed(header)

    def _hashes(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the two hashes that programs know a safetensors file by.

        `sshs_model_hash` is the SHA-256 of all bytes after the header. `sshs_legacy_hash` is the first 8 digits of the
        SHA-256 of 64 KiB at offset 1 MiB of the file as it would be with the training metadata (`ss_`) alone.
        """
        plain = self._header({key: text for key, text in metadata.items() if key.startswith("ss_")})
        digest, opening = hashlib.sha256(), bytearray(plain)
        for values in self._values():
            digest.update(values)
            opening += values[: max(0, 0x110000 - len(opening))]
        legacy = hashlib.sha256(opening[0x100000:0x110000]).hexdigest()[:8]
        return {"sshs_model_hash": digest.hexdigest(), "sshs_legacy_hash": legacy}


def _for_peft(name: str, module: Module, family: FamilyName | None) -> Module:
    """Return a module as diffusers reads it: LoRA or DoRA, else the LoRA of the same change, whose rank is larger.

    Raises:
        UserError: a LoRA cannot express it, or it is a DoRA by input.
    """
    if by_input(module):
        raise UserError(
            "PEFT's format holds a DoRA's magnitudes for each output; this adapter has one for each input.",
            "Write kohya's format.",
        )
    if isinstance(module, Lora) and bias_change(module) is None:
        return module
    return low_rank.cut(low_rank.factors(module, kernel_of(name, module, family))).pair.module()


def _peft_tensors(name: str, module: Module, family: FamilyName | None) -> dict[str, Tensor]:
    dotted = layer_names.peft(place_of(name), family)
    tensors = {
        f"{dotted}.lora_A.weight": module.parts["lora_down.weight"],
        f"{dotted}.lora_B.weight": module.parts["lora_up.weight"],
    }
    if (scale := module.parts.get("dora_scale")) is not None:
        shape = (1, -1, 1, 1) if scale.dim() == 4 else (-1,)
        tensors[f"{dotted}.lora_magnitude_vector.weight"] = scale.reshape(shape)
    return tensors


def _peft_settings(modules: Mapping[str, Module], family: FamilyName | None) -> dict[str, Any]:
    """Return peft's settings of all components, which hold the alphas of the file."""
    by_component: dict[str, list[tuple[Place, Module]]] = {}
    for name, module in modules.items():
        component = layer_names.peft(place_of(name), family).partition(".")[0]
        by_component.setdefault(component, []).append((place_of(name), module))
    return {
        f"{component}.{key}": value
        for component, placed in by_component.items()
        for key, value in _settings_of_component(placed).items()
    }


def _settings_of_component(modules: list[tuple[Place, Module]]) -> dict[str, Any]:
    """Return peft's settings for one component: the most common values, and the other modules' by path."""
    kinds = {kind(module) for _, module in modules}
    if "DoRA" in kinds and len(kinds) > 1:  # peft has one switch for all layers of a component
        raise UserError(
            "Only some layers of this adapter are DoRA, which PEFT's format cannot express.", "Write kohya's format."
        )
    rank = Counter(module.rank for _, module in modules).most_common(1)[0][0]
    alpha = Counter(module.alpha for _, module in modules).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(place.path for place, _ in modules),
        "rank_pattern": {place.path: module.rank for place, module in modules if module.rank != rank},
        "alpha_pattern": {place.path: module.alpha for place, module in modules if module.alpha != alpha},
        "use_dora": "DoRA" in kinds,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _cast(key: str, tensor: Tensor, precision: Precision) -> Tensor:
    # Alphas are in fp32, which every program reads. A DoRA's magnitudes multiply whole weights: rounded to fp16 they
    # would be off by a percent of what it learned.
    precise = key.endswith((".alpha", ".dora_scale", ".lora_magnitude_vector.weight"))
    cast = tensor.to(torch.float32 if precise else DTYPES[precision]).contiguous()
    if not cast.isfinite().all():
        raise UserError(
            "The adapter is not finite in {precision} ({key}).",
            "Write it in bf16 or fp32.",
            precision=precision,
            key=key,
        )
    return cast


def place_of(name: str) -> Place:
    """Return the place of a module by its name in kohya's format."""
    place = layer_names.read(name).place
    assert place  # made by `layer_names.kohya`
    return place


def kernel_of(name: str, module: Module, family: FamilyName | None) -> tuple[int, ...]:
    """Return the shape behind the rows of the weight that a module changes, where flat tensors do not show it."""
    side, columns = layer_shapes.kernel(place_of(name).path, family), size(module)[1]
    return (columns // side**2, side, side) if side else (columns,)


def write(
    modules: Mapping[str, Module],
    metadata: Mapping[str, str],
    *,
    form: Form,
    precision: Precision,
    strip: bool = False,
    family: FamilyName | None = None,
) -> bytes:
    """Return a whole file of modules; the family, where it is known, tells the shapes of what is converted.

    Raises:
        UserError: a value is too large for the precision, or a kind cannot be written in this format.
    """
    draft = Draft(io.BytesIO(), form, precision, family, joins=joined.can_join(modules, family))
    draft.update(modules)
    return b"".join(draft.chunks(metadata, strip=strip))


def inherited(sources: Sequence[AdapterFile], modules: Mapping[str, Module], title: str) -> dict[str, str]:
    """Return metadata of a file that was made of others: its base, title and sources, but no training settings."""
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
    """Return a file's metadata, with those added that name its family, if it has none."""
    if file.family is None or file.metadata.get("ss_base_model_version"):
        return dict(file.metadata)
    predicts = FAMILIES[file.family].first
    if file.metadata.get("modelspec.prediction_type") == "v":
        predicts = "v_prediction"
    return {**of_family(file.family, predicts), **network(file.modules), **file.metadata}


def of_family(family: FamilyName, predicts: PredictionType, size: Size | None = None) -> dict[str, str]:
    """Return metadata that name the base models a file is for: the family, and what they predict."""
    names = METADATA[family]
    architecture, version = names.names[predicts]
    if size:
        architecture = names.sizes[size.configs]
    short_names = {"epsilon": "epsilon", "v_prediction": "v"}
    predicted = {"modelspec.prediction_type": short_names[predicts]} if predicts in short_names else {}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        **predicted,
        "ss_base_model_version": version,
        "ss_v2": str(names.v2),
    }


def network(modules: Mapping[str, Module]) -> dict[str, str]:
    """Return the metadata by which programs know how a file is built; of several ranks or alphas, the most common."""
    kinds = {kind(module) for module in modules.values()}
    arguments: dict[str, Any] = {}
    if other := min(kinds & _ALGORITHMS.keys(), default=""):
        arguments["algo"] = _ALGORITHMS[other]
    if any("DoRA" in name for name in kinds):
        arguments |= {"dora_wd": True, "wd_on_output": not any(by_input(module) for module in modules.values())}
    if "norm" in kinds:
        arguments["train_norm"] = True
    return {
        "ss_network_module": "lycoris.kohya" if arguments else "networks.lora",
        "ss_network_dim": str(Counter(module.rank for module in modules.values()).most_common(1)[0][0]),
        "ss_network_alpha": str(Counter(module.alpha for module in modules.values()).most_common(1)[0][0]),
        "ss_network_args": json.dumps(arguments),
    }
