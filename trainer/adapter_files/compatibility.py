"""Check which programs load an adapter file: their loading rules, applied to its names, sizes and metadata.

The rules were found by running the programs' own loaders (ComfyUI a125cd84, Forge dfdcbab6, sd-scripts 48d368fa,
diffusers 0.42) or, for A1111, InvokeAI and SD.Next, by reading them. No model is loaded and no torch is needed, so that
any file is checked in a moment.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.adapter_files import peft_settings, safetensors_reader, summary
from trainer.adapter_files.facts import Facts
from trainer.adapter_files.peft_settings import METADATA as PEFT_METADATA
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.layer_names import Module, Shape
from trainer.base_models.registry import DEFAULT, FAMILIES
from trainer.errors import UserError
from trainer.i18n import _, ngettext

MICRO = _("It is for Micro, the base model built into Limner, which other programs do not have.")
_FORGE_LIMIT = 12


@dataclass(frozen=True)
class Verdict:
    """Verdict on a file for one program."""

    program: str
    loads: bool
    words: str


@dataclass(frozen=True)
class Report:
    """Report on a file: a verdict for each program, and problems and notes about the file itself."""

    file: str
    family: str
    keys: int
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Tell whether the file is sound and every program loads it."""
        return not self.problems and all(verdict.loads for verdict in self.verdicts)


@dataclass(frozen=True)
class Program:
    """Rules by which a program reads adapter files.

    `knows` tells whether it knows a layer under the name that the file has for it; the texts say what it does with a
    key that matches nothing, a missing alpha and a wrong size. `own_rules` yields problems that only it has, given the
    number of unmatched keys.
    """

    name: str
    knows: Callable[[Facts, Module], bool]
    unmatched: str
    wrong_size: str
    own_rules: Callable[[Facts, int], Iterator[str]]
    missing_alpha: str = _("layers without alpha act as if alpha were the rank")


def check(path: Path, known: Mapping[str, Shape] | None = None) -> Report:
    """Apply all rules to a file.

    Args:
        path: of the file.
        known: weight shapes by `component:path` of the base model that it is for, where that is at hand; they are used
            if the sizes are not those of a published model or of Micro.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        safetensors_reader.read(path)  # says what is there instead
    try:
        file = safetensors_reader.read(path)
    except UserError as error:
        return _unreadable(path, error)
    layers, unknown_keys = summary.layers(file)
    family = summary.family(file, layers)
    model = summary.model(file, layers, family)
    if model or not known:
        known = layer_shapes.known(model or family or DEFAULT)
    settings = peft_settings.find(file, path.parent)
    facts = Facts(file, layers, unknown_keys, family or DEFAULT, model, known, settings)
    notes = (MICRO,) if model == "micro" else ()
    verdicts = tuple(_judge(program, facts) for program in PROGRAMS)
    problems = tuple(_problems(facts, known_family=family is not None))
    title = FAMILIES[family].title if family else "unknown"
    return Report(path.name, title, len(file.entries), verdicts, problems, notes)


def _unreadable(path: Path, error: UserError) -> Report:
    opening = _("{name} cannot be used: {reason}.", name=path.name, reason="").rstrip(".")
    reason = error.message.removeprefix(opening).rstrip(".")
    refused = _("cannot be opened: {reason}", reason=reason)
    verdicts = tuple(Verdict(program.name, False, refused) for program in PROGRAMS)
    return Report(path.name, "unknown", 0, verdicts, (f"{reason[0].upper()}{reason[1:]}.",))


def _problems(facts: Facts, *, known_family: bool) -> Iterator[str]:
    """List what is wrong with a file itself, whatever program reads it."""
    if not facts.layers:
        yield _("It has no adapter layers.")
        return
    if not known_family and not any(facts.has(layer.module) for layer in facts.layers):
        yield _("It is not for Stable Diffusion 1.x, 2.x or XL.")
    yield from _layer_problems(facts)
    by_width = summary.family_by_width(facts.file, facts.layers)
    by_metadata = summary.family_by_metadata(facts.file.metadata)
    if by_width and by_metadata and by_width != by_metadata:
        yield _(
            "Its metadata name {named}, but its layers are those of {family}.",
            named=FAMILIES[by_metadata].title,
            family=FAMILIES[by_width].title,
        )


def _layer_problems(facts: Facts) -> Iterator[str]:
    """List what is wrong with layers of a file: how many are affected, and the name of the first."""
    if names := facts.not_finite:
        yield ngettext(
            "{n} tensor ({first}) has values that are not finite.",
            "{n} tensors ({first}) have values that are not finite.",
            len(names),
            first=names[0][:100],
        )
    if names := facts.incomplete:
        yield ngettext(
            "{n} layer ({first}) lacks a tensor, or its tensors do not fit together.",
            "{n} layers ({first}) lack a tensor, or their tensors do not fit together.",
            len(names),
            first=names[0][:100],
        )
    if names := facts.misfits:
        yield ngettext(
            "{n} layer ({first}) has a different size than in {family}.",
            "{n} layers ({first}) have a different size than in {family}.",
            len(names),
            first=names[0][:100],
            family=facts.spec.title,
        )
    if names := facts.twice:
        yield ngettext(
            "{n} layer ({first}) is in it twice, under two names.",
            "{n} layers ({first}) are in it twice, under two names.",
            len(names),
            first=names[0][:100],
        )
    if names := facts.without_alpha:
        yield ngettext(
            "{n} layer ({first}) has no alpha.",
            "{n} layers ({first}) have no alpha.",
            len(names),
            first=names[0][:100],
        )
    if names := facts.unknown_keys:
        yield ngettext(
            "{n} key ({first}) belongs to no layer.",
            "{n} keys ({first}) belong to no layer.",
            len(names),
            first=names[0][:100],
        )


def _judge(program: Program, facts: Facts) -> Verdict:
    if not facts.layers:
        return Verdict(program.name, False, _("it has nothing that could be loaded"))
    if facts.model == "micro" and program.name != "diffusers":
        return Verdict(program.name, False, _("does not have the base model Micro, which this file is for"))
    unmatched = [
        key
        for layer in facts.layers
        for key in layer.parts.values()
        if not (facts.has(layer.module) and program.knows(facts, layer.module) and layer.kind)
    ] + facts.unknown_keys
    faults = [*_unmatched(program, facts, unmatched), *program.own_rules(facts, len(unmatched))]
    if facts.incomplete:
        faults.append(
            _(
                "{layer} lacks a tensor or its tensors do not fit together, which stops or spoils it",
                layer=facts.incomplete[0],
            )
        )
    if facts.misfits:
        faults.append(_("{layer} has a wrong size: {what}", layer=facts.misfits[0], what=program.wrong_size))
    if facts.without_alpha and program.missing_alpha:
        faults.append(_("{layer} has no alpha: {what}", layer=facts.without_alpha[0], what=program.missing_alpha))
    if facts.not_finite:
        faults.append(_("values that are not finite make its images black"))
    if faults:
        return Verdict(program.name, False, "; ".join(faults))
    loads = _("loads: all {number} keys", number=len(facts.file.entries))
    return Verdict(program.name, True, loads + _remark(program, facts))


def _unmatched(program: Program, facts: Facts, keys: list[str]) -> Iterator[str]:
    if keys:
        yield _(
            "{number} of {all} keys match nothing ({first}): {what}",
            number=len(keys),
            all=len(facts.file.entries),
            first=keys[0][:80],
            what=program.unmatched,
        )


def _remark(program: Program, facts: Facts) -> str:
    """Describe what is worth knowing about a file that loads; "" if nothing is."""
    kinds = {layer.kind for layer in facts.layers}
    if program.name == "sd-scripts" and kinds != {"LoRA"}:
        return _(", with --network_module lycoris.kohya")
    if program.name in ("ComfyUI", "Forge") and facts.dora_by_output:
        return _(", but scales DoRA's magnitudes relative to the base's weights, so that images differ slightly")
    if program.name == "sd-scripts" and facts.spec.original_names and _namings(facts) == {"diffusers"}:
        return _("; training cannot be resumed from it under these names")
    if program.name == "diffusers" and facts.model == "micro":
        return _(", with Micro's folder as the base model")
    return ""


def _namings(facts: Facts) -> set[str]:
    places = [(layer.module.place, layer.module.naming) for layer in facts.layers]
    return {naming for place, naming in places if place and place.component == "unet"}


# Names ----------------------------------------------------------------------------------------------------------


def _is_text(facts: Facts, module: Module, others: tuple[str, ...] = ()) -> bool:
    """Tell whether a text encoder's layer has the family's own prefix, or another that a program accepts."""
    component = module.place.component if module.place else ""
    return module.text_model and module.prefix in (facts.spec.prefixes.get(component), *others)


def _in_unet(module: Module) -> bool:
    return module.place is not None and module.place.component == "unet"


def _has_unet_name(facts: Facts, module: Module) -> bool:
    """Tell whether a layer of the UNet has a name that sd-scripts itself could have given it."""
    return facts.spec.original_names or module.naming == "diffusers"


def _comfy(facts: Facts, module: Module) -> bool:
    if module.place is None:
        return False
    if _in_unet(module):
        # Its map of dotted names is that of 2023, in which attention was a processor's.
        return module.naming != "dotted" or ".to_" not in module.name or ".processor.to_" in module.name
    if module.naming == "dotted":
        return module.text_model
    first = module.place.component == "text_encoder"
    return _is_text(facts, module, ("lora_te_", "lora_te1_") if first else ())


def _a1111(facts: Facts, module: Module) -> bool:
    if _in_unet(module):
        return module.prefix != "lycoris_"
    only = len(facts.spec.text_encoders) == 1
    return module.naming != "dotted" and _is_text(facts, module, ("lora_te1_",) if only else ())


def _invoke(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted" or module.prefix == "lycoris_":
        return False
    return _has_unet_name(facts, module) if _in_unet(module) else _is_text(facts, module)


def _kohya(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted" or module.prefix == "lycoris_" or not module.place:
        return False
    if _in_unet(module):
        return module.place.block != "outside" and _has_unet_name(facts, module)
    return _is_text(facts, module)


def _diffusers(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted":
        return bool(module.prefix) and ".processor." not in module.name
    if _in_unet(module):
        return module.prefix == "lora_unet_" and _has_unet_name(facts, module)
    return _is_text(facts, module, ("lora_te_", "lora_te1_", "lora_te2_"))


def _sdnext(facts: Facts, module: Module) -> bool:
    return _in_unet(module) or (module.naming != "dotted" and _is_text(facts, module))


# Own rules ------------------------------------------------------------------------------------------------------


def _scale(facts: Facts, _unused: int) -> Iterator[str]:
    if facts.peft and not facts.peft_settings.is_plain:
        yield _("it does not read the alpha in the metadata, so that the strength is wrong")


def _webui(facts: Facts, unmatched: int) -> Iterator[str]:
    yield from _scale(facts, unmatched)
    if not facts.file.data[8:10].startswith(b'{"'):
        yield _('the header does not begin with {", which it insists on')
    for key in ("ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info"):
        try:
            table = json.loads(facts.file.metadata.get(key, "{}"))
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            yield _("{key} in the metadata is not a JSON object, which breaks its file list", key=key)


def _dora(facts: Facts) -> Iterator[str]:
    """A1111 and InvokeAI divide by a norm for each input, so that magnitudes for each output distort the weight."""
    if facts.dora_by_output:
        yield _("it applies DoRA's magnitudes along the wrong axis, which ruins the images")


def _a1111_rules(facts: Facts, unmatched: int) -> Iterator[str]:
    yield from _webui(facts, unmatched)
    yield from _dora(facts)
    metadata = facts.file.metadata
    if not metadata:
        return
    version, v2 = metadata.get("ss_base_model_version", ""), metadata.get("ss_v2") == "True"
    listed = next(name for name, spec in FAMILIES.items() if spec.kohya_v2 == v2)
    for name, spec in FAMILIES.items():
        if spec.original_names and version.startswith(spec.metadata_prefixes):
            listed = name
    if listed != facts.family:
        yield _(
            "its metadata list it under {listed}, so that it is hidden for {family}",
            listed=FAMILIES[listed].title,
            family=facts.spec.title,
        )


def _forge_rules(facts: Facts, unmatched: int) -> Iterator[str]:
    yield from _webui(facts, unmatched)
    if unmatched > _FORGE_LIMIT:
        yield _("more than {number} such keys, so that it refuses the whole file", number=_FORGE_LIMIT)


def _invoke_rules(facts: Facts, _unused: int) -> Iterator[str]:
    yield from _dora(facts)
    if facts.spec.original_names and {"original", "diffusers"} <= _namings(facts):
        yield _("it refuses a file with both kinds of names")
    if facts.file.metadata.get("format", "pt") not in ("pt", "torch", "pytorch"):
        yield _("it refuses this `format` in the metadata")
    if not facts.peft and summary.family_by_width(facts.file, facts.layers) != facts.family:
        yield _("it cannot detect the family, which it does by the widths of cross-attention or text encoder")


def _kohya_rules(facts: Facts, _unused: int) -> Iterator[str]:
    if facts.spec.original_names and {"original", "diffusers"} <= _namings(facts):
        yield _("of a file with both kinds of names it loads one kind")
    if facts.dora_by_input:
        yield _(
            "it stops: LyCORIS reads DoRA's magnitudes for each output only; training can be resumed from it with "
            "wd_on_output=False"
        )


def _diffusers_rules(facts: Facts, _unused: int) -> Iterator[str]:
    if facts.twice:
        yield _("{layer} is there twice, and it drops one of them", layer=facts.twice[0])
    if facts.without_alpha and len(facts.without_alpha) == len(facts.layers):
        yield _("no layer has an alpha: all act as if it were the rank")
    if facts.peft:
        return
    if not all(key.startswith(layer_names.PREFIXES) for key in facts.file.entries):
        yield _("it recognizes kohya's format only if all keys have its prefixes, and stops with an error")
    if PEFT_METADATA in facts.file.metadata:
        yield _("it refuses {key} beside alphas", key=PEFT_METADATA)
    for component in facts.spec.prefixes:
        places = [layer.module.place for layer in facts.layers if layer.module.place]
        paths = [place.path for place in places if place.component == component]
        if paths and not any(path.endswith("out_proj") for path in paths):
            yield _("it does not recognize a text encoder's layers without an out_proj among them, and stops")
    if {layer.kind for layer in facts.layers} & {"DoRA", "LoHa", "LoKr"}:
        yield _("it does not read this kind of adapter in kohya's format; DoRA loses its magnitudes")


_RESHAPES = _("it reshapes what does not fit, and then silently does something else")
_STOPS, _LEFT_OUT = _("it stops with an error"), _("left out")
PROGRAMS = (
    Program("ComfyUI", _comfy, _("left out, with a line in the log only"), _RESHAPES, _scale),
    Program("A1111", _a1111, _LEFT_OUT, _("it stops or does something else"), _a1111_rules),
    Program("Forge", _comfy, _LEFT_OUT, _RESHAPES, _forge_rules),
    Program("InvokeAI", _invoke, _STOPS, _STOPS, _invoke_rules),
    Program("sd-scripts", _kohya, _("silently left out"), _STOPS, _kohya_rules),
    Program("diffusers", _diffusers, _STOPS, _STOPS, _diffusers_rules, missing_alpha=""),
    Program("SD.Next", _sdnext, _LEFT_OUT, _STOPS, _scale),
)
