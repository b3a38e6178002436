"""Read adapter files strictly, whichever program made them, as what they do to a base model.

A file may be in kohya's format, with the blocks of diffusers or of the original models, or in that of PEFT, LyCORIS
or ComfyUI.
Modules are always named as `layer_names.kohya` names them, so that nothing behind this module knows another format.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from trainer.adapter_files import joined, peft_settings, safetensors_reader, summary
from trainer.adapter_files.modules import IA3, Full, GLoRA, LoHa, LoKr, Lora, Module, Oft, OftV2, is_plain, kind
from trainer.adapter_files.peft_settings import PeftSettings
from trainer.adapter_files.safetensors_reader import INTEGERS, TYPES, SafetensorsFile, refusal
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import DEFAULT, FamilyName
from trainer.errors import UserError
from trainer.i18n import _, ngettext

# Tensors that make a layer of a kind, beside its alpha.
_SCALED: dict[frozenset[str], type[Lora | LoHa | LoKr | GLoRA | Oft]] = {
    frozenset(("lora_down.weight", "lora_up.weight")): Lora,
    frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")): LoHa,
    **{
        frozenset((*first, *second)): LoKr
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    },
    frozenset(("a1.weight", "a2.weight", "b1.weight", "b2.weight")): GLoRA,
    frozenset(("oft_blocks",)): Oft,
}
# Those of kinds that have no alpha.
_UNSCALED: dict[frozenset[str], type[IA3 | Full | OftV2]] = {
    frozenset(("weight", "on_input")): IA3,
    frozenset(("oft_R.weight",)): OftV2,
    frozenset(("diff",)): Full,
    frozenset(("w_norm",)): Full,
    frozenset(): Full,  # a bias alone
}
# Tensors that a layer may have besides, and one that it has to have then; the biases may be with any.
_EXTRAS = {
    "dora_scale": ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a"),
    "rescale": ("oft_blocks",),
    "oft_R.terms": ("oft_R.weight",),
    "lora_mid.weight": ("lora_down.weight",),
    "hada_t1": ("hada_w1_a",),
    "hada_t2": ("hada_w2_a",),
    "lokr_t2": ("lokr_w2_a",),
    "bm.weight": ("b2.weight",),
}
_BIASES = ("diff_b", "b_norm")

# What Limner does not read, a part of the keys that it is known by, and a remedy.
_NOT_READ = (
    (_("OFT of PEFT before 0.16"), ".oft_r.", _("Merge it into its base model with PEFT 0.15.")),
    (_("an embedding"), "bundle_emb.", _("In OneTrainer, save the embedding as a file of its own.")),
    (_("weights that replace those of the base"), ".set_weight", _("Use a file that changes weights instead.")),
    (_("IA3 of PEFT"), ".ia3_l", _("Merge it into its base model with PEFT.")),
    (_("trained biases of PEFT"), ".base_layer.bias", _("Train it with bias='none'.")),
    (_("OFT in parts of a layer"), ".oft_blocks.", _("Use it in sd-scripts, or train a LoRA.")),
    (_("norms of a transformer"), ".b_norm", _("Train it without norms: train_norm=False in LyCORIS.")),
)


@dataclass(frozen=True)
class AdapterFile:
    """Contents of an adapter file: modules by their names in kohya's format."""

    modules: Mapping[str, Module]
    metadata: dict[str, str]
    size: int
    family: FamilyName | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors in kohya's format."""
        return tensors_of(self.modules)

    @property
    def kinds(self) -> set[str]:
        """Kinds of its modules, such as LoRA and DoRA."""
        return {kind(module) for module in self.modules.values()}


class _Stored(Mapping[str, Module]):
    """Modules of a file, each of which is read whenever it is accessed, so that large files take little memory."""

    def __init__(
        self,
        file: SafetensorsFile,
        settings: PeftSettings,
        family: FamilyName | None,
        places: dict[str, tuple[Layer, Place]],
    ) -> None:
        self._file, self._settings, self._family, self._places = file, settings, family, places

    def __getitem__(self, name: str) -> Module:
        layer, place = self._places[name]
        return _of_layer(self._file, layer, self._settings, self._family)[place]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read(path: Path) -> AdapterFile:
    """Read an adapter file, whatever its format.

    Raises:
        UserError: it is missing, damaged, not finite, not a safetensors file, or not an adapter of a known format.
    """
    return of_file(safetensors_reader.read(path), path.parent)


def of_file(file: SafetensorsFile, folder: Path | None = None) -> AdapterFile:
    """Return the adapter in a safetensors file that was read already; PEFT keeps settings beside it in its folder.

    Raises:
        UserError: as `read`.
    """
    adapter = _checked(file, folder)
    return replace(adapter, modules=dict(adapter.modules))


def scan(path: Path) -> AdapterFile:
    """Check an adapter file as `read` does, but leave its modules on disk: each is read whenever it is accessed.

    Raises:
        UserError: as `read`; and when a module is accessed, if the file was changed or removed meanwhile.
    """
    return _checked(safetensors_reader.read(path), path.parent)


def _checked(file: SafetensorsFile, folder: Path | None) -> AdapterFile:
    layers, unknown = summary.layers(file)
    if broken := summary.not_finite(file, layers, unknown):
        raise refusal(file.name, "{key} has values that are not finite", key=broken[0])
    if integers := summary.not_float(file, layers):
        raise refusal(file.name, "{key} has whole numbers instead of fractions", key=integers[0])
    unknown += [next(iter(layer.parts.values())) for layer in layers if layer.module.place is None]
    if unknown:
        for what, part, remedy in _NOT_READ:
            if matching := [key for key in unknown if part in key]:
                raise _unread(file, what, matching[0], remedy)
        raise refusal(file.name, "it has a tensor of an unknown kind ({first})", first=unknown[0][:100])
    if not layers:
        raise refusal(file.name, "it is empty")
    family = summary.family(file, layers)
    settings = peft_settings.find(file, folder)
    places: dict[str, tuple[Layer, Place]] = {}
    for layer in layers:
        for place in _of_layer(file, layer, settings, family):
            name = layer_names.kohya(place, family or DEFAULT)
            if name in places:
                raise refusal(file.name, "it has {name} twice, under two names", name=name)
            places[name] = layer, place
    return AdapterFile(_Stored(file, settings, family, dict(sorted(places.items()))), file.metadata, file.size, family)


def _of_layer(
    file: SafetensorsFile, layer: Layer, settings: PeftSettings, family: FamilyName | None
) -> dict[Place, Module]:
    """Return the module of a layer of a file, or those of its parts."""
    place = layer.module.place
    assert place  # else it was among the unknown
    parts = {ending: tensor(file, key) for ending, key in layer.parts.items()}
    naming = layer.module.naming
    if naming == "dotted":
        parts = _from_peft(settings, layer.module.named or place, parts)
    elif naming == "generic" or layer.by_ai_toolkit:  # a LoRA that ComfyUI saves has no alpha
        parts = {"alpha": torch.tensor(summary.rank_of(file, layer) or 1), **parts}
    rotation = parts.get("oft_R.weight")
    if rotation is not None and rotation.dim() == 2 and "oft_R.terms" not in parts:
        parts = _rotations(file, layer, rotation, settings, family)
    if layer.has_peft_bias and (rank := summary.rank_of(file, layer)):
        parts["diff_b"] = parts["diff_b"].float() * (float(parts["alpha"]) / rank)
    if layer.by_output:
        dims = max(parts[ending].dim() for ending in ("dora_scale", "lora_down.weight") if ending in parts)
        parts["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * max(1, dims - 1))
    if (up := parts.get("lora_up.weight")) is not None and up.dim() == 2:  # as LyCORIS' DyLoRA has all
        parts["lora_up.weight"] = up.reshape(*up.shape, *[1] * (parts.get("lora_down.weight", up).dim() - 2))
    module = _module(layer, parts, file.name)
    originally = naming in ("original", "generic")
    if (own := joined.apart(place, module, originally=originally, family=family)) is None:
        raise refusal(
            file.name,
            "{module} is a {kind} of layers that are one in the original code, which Limner cannot take apart",
            _("Train it on the layers as diffusers has them, or DoRA with a magnitude for each output."),
            module=layer.module.name,
            kind=kind(module),
        )
    return own


def tensor(file: SafetensorsFile, key: str) -> Tensor:
    """Return a tensor of a file, in memory of its own."""
    entry = file.entries[key]
    data = bytearray(file.data(key))  # its own, as torch may write to it
    dtype = getattr(torch, (TYPES | INTEGERS)[entry.dtype])
    values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return values.reshape(entry.shape)


def of_tensors(tensors: Mapping[str, Tensor], name: str, metadata: Mapping[str, str] | None = None) -> AdapterFile:
    """Return the adapter that tensors in kohya's format make; metadata may name the family that it is for.

    Raises:
        UserError: they make none.
    """
    return of_file(safetensors_reader.parse(save(dict(tensors), dict(metadata or {})), name))


def tensors_of(modules: Mapping[str, Module]) -> dict[str, Tensor]:
    """Return the tensors of modules in kohya's format, each module with its alpha."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        alpha = {} if module.alpha is None else {"alpha": torch.tensor(module.alpha)}
        tensors |= {f"{name}.{ending}": tensor for ending, tensor in {**module.parts, **alpha}.items()}
    return tensors


def _from_peft(settings: PeftSettings, place: Place, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors with an alpha, as in kohya's format."""
    rank = layer_shapes.rank({ending: part.shape for ending, part in parts.items()}) or 1
    converted = {"alpha": torch.tensor(settings.of(place).alpha_of(place.path, rank)), **parts}
    if parts.keys() == {"lokr_w1", "lokr_w2"}:  # LyCORIS would not scale them
        converted["lokr_w1"] = parts["lokr_w1"] * settings.of(place).scale_of(place.path)
    return converted


def _unread(file: SafetensorsFile, what: str, first: str, remedy: str) -> UserError:
    message = _("it has {what}, which Limner does not read ({first})", what=what, first=first[:100])
    return refusal(file.name, message, remedy)


def _rotations(
    file: SafetensorsFile, layer: Layer, weight: Tensor, settings: PeftSettings, family: FamilyName | None
) -> dict[str, Tensor]:
    """Return OFT of PEFT or OneTrainer as rotations of inputs, with scales and limits in their values.

    OneTrainer has one form, but turns inputs of convolutions the other way round (`modules/module/LoRAModule.py` of
    23df3832). PEFT does not rotate kernels as a whole, and keeps its settings in a file of their own or in the metadata
    (`tuners/oft/layer.py` of 0.21).
    """
    place = layer.module.named or Place("", "")
    side, by_peft = layer_shapes.kernel(place.path, family), settings.of(place).oft
    by_onetrainer = layer.module.naming != "dotted" or any(key.startswith("ot_") for key in file.metadata)
    if "oft_R.scaled_oft" in layer.parts:
        weight = weight / (2 * max(1, layer_shapes.side_of_triangle(weight.shape[-1]) - 1) ** 0.5)
    if by_peft and side < 2:
        limits = by_peft[1] / math.sqrt(2 * len(weight)) / weight.float().norm(dim=-1, keepdim=True)
        return {"oft_R.weight": weight * limits.clamp(max=1.0), "oft_R.terms": torch.tensor(float(by_peft[0]))}
    if by_peft:
        what, remedy = _("OFT of PEFT on convolutions wider than 1 x 1"), _("Train it on linear layers alone.")
        raise _unread(file, what, layer.module.name, remedy)
    if not by_onetrainer:
        what, remedy = _("OFT of PEFT without its settings"), _("Put its adapter_config.json into the same folder.")
        raise _unread(file, what, layer.module.name, remedy)
    return {"oft_R.weight": -weight, "oft_R.terms": torch.tensor(5.0)} if side else {"oft_R.weight": weight}


def _module(layer: Layer, parts: dict[str, Tensor], name: str) -> Module:
    module = layer.module.name
    alpha = parts.pop("alpha", None)
    kind_of = _required(module, parts, name)
    shapes = {ending: tuple(part.shape) for ending, part in parts.items()}
    if (alpha is not None and alpha.numel() != 1) or not layer_shapes.fit(shapes):
        raise refusal(name, "the shapes of {module} do not fit together", module=module)
    if float(parts.get("oft_R.terms", 0)) not in range(peft_settings.MAX_TERMS + 1):
        raise refusal(name, "its {peft_metadata} is damaged", peft_metadata=f"{module}.oft_R.terms")
    if kind_of in _UNSCALED:
        return _UNSCALED[kind_of](parts)
    plain, build = _without_cores(parts), _SCALED[kind_of]
    if build is Oft:
        alpha = torch.tensor(0.0) if alpha is None else alpha
    elif build is LoKr and not LoKr(plain, 1.0).rank:
        alpha = torch.tensor(1.0)  # no program uses it; ai-toolkit's is infinite in fp16
    if alpha is None:
        raise refusal(name, "{module} has no alpha", module=module)
    if not 0 <= float(alpha) < math.inf or (build is not Oft and not float(alpha)):
        raise refusal(name, "the alpha of {module} is not positive", module=module)
    return build(plain, float(alpha))


def _required(module: str, parts: dict[str, Tensor], name: str) -> frozenset[str]:
    """Return the tensors of a layer that make its kind."""
    required = frozenset(parts.keys() - _EXTRAS.keys() - {*_BIASES})
    strange = [ending for ending, needed in _EXTRAS.items() if ending in parts and not required & {*needed}]
    if (required in _SCALED or required in _UNSCALED) and not strange:
        return required
    known = [endings for endings in (*_SCALED, *_UNSCALED) if endings]
    nearest = min(known, key=lambda endings: (endings.isdisjoint(required), len(endings ^ required)))
    missing, unknown = sorted(nearest - required), sorted(required - nearest) + strange
    if unknown:
        raise refusal(name, "it has a tensor of an unknown kind ({module}.{key})", module=module, key=unknown[0])
    part = missing[0].removeprefix("lora_").removesuffix(".weight")
    raise refusal(name, "{module} lacks its {part}", module=module, part=part)


def _without_cores(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the core tensors of a Tucker decomposition into the factors beside them, for the same change.

    LyCORIS (Yeh et al. 2024, https://arxiv.org/abs/2309.14859, section 3.2) has them for convolutions.
    """
    # OneTrainer has the factors of a LoHa of a convolution as convolutions.
    plain = {**parts, **{key: part.flatten(1) for key, part in parts.items() if key.startswith("hada_w")}}
    for core_name, second in (("lora_mid.weight", "lora_down.weight"), ("bm.weight", "b2.weight")):
        if (core := plain.pop(core_name, None)) is not None:
            down = torch.einsum("pqhw,qi->pihw", core.float(), parts[second].flatten(1).float())
            plain[second] = down.to(core.dtype)
    for core_name, first, second in (
        ("hada_t1", "hada_w1_a", "hada_w1_b"),
        ("hada_t2", "hada_w2_a", "hada_w2_b"),
        ("lokr_t2", "lokr_w2_a", "lokr_w2_b"),
    ):
        if (core := plain.pop(core_name, None)) is not None:
            plain[first] = parts[first].T.contiguous()
            wide = torch.einsum("pqhw,qi->pihw", core.float(), parts[second].float()).to(core.dtype)
            plain[second] = wide.flatten(1)
    return plain


def without_t5(file: AdapterFile, title: str) -> tuple[AdapterFile, tuple[str, ...]]:
    """Return a file without its layers of T5, for a base model without it, and the sentence that says so, if any."""
    kept = {name: module for name, module in file.modules.items() if not name.startswith(layer_names.T5_PREFIX)}
    if not (count := len(file.modules) - len(kept)):
        return file, ()
    sentence = ngettext(
        "{title} changes {n} layer of T5, which this base model does not have: it is left out.",
        "{title} changes {n} layers of T5, which this base model does not have: they are left out.",
        count,
        title=title,
    )
    return replace(file, modules=kept), (sentence,)


def readable_by_diffusers(file: AdapterFile) -> bool:
    """Return True if diffusers applies the file as intended when it is in kohya's format.

    It recognizes the layers of a text encoder by an `out_proj` among them, and stops with an error if there is none.
    False of transformers, of which it depends on the family (`family_rules.SUPPORT`).
    """
    encoders = {name.partition("_text_model_")[0] for name in file.modules if not name.startswith("lora_unet_")}
    known = {name.partition("_text_model_")[0] for name in file.modules if name.endswith("_self_attn_out_proj")}
    kohya = not any(name.startswith("lora_transformer_") for name in file.modules)
    return kohya and encoders <= known and bool(file.modules) and all(map(is_plain, file.modules.values()))
