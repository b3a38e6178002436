"""Will a file load? The loading rules of the programs people draw with, applied to a file's names, sizes and metadata.

The rules were found by running the programs' own loaders (ComfyUI a125cd84, Forge dfdcbab6, sd-scripts 48d368fa,
diffusers 0.42) or, for A1111, InvokeAI and SD.Next, by reading them; they are written here anew. No model is loaded,
no torch is needed: a file can be looked at in a moment, whatever is in it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.adapter_files import safetensors_reader, summary
from trainer.adapter_files.facts import PEFT_SETTINGS, Facts
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.detect import TITLES, FamilyName
from trainer.base_models.layer_names import TEXT_PREFIXES, Module, Shape
from trainer.errors import UserError
from trainer.i18n import count, say

MICRO = say("It is for Micro, the base model that is built into Limner and that other programs do not have.")
_FORGE_LIMIT = 12


@dataclass(frozen=True)
class Verdict:
    """Verdict on a file for one program."""

    program: str
    loads: bool
    words: str


@dataclass(frozen=True)
class Report:
    """Report on a file: a verdict for each program, and what is wrong or noteworthy with the file itself."""

    file: str
    family: str
    keys: int
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Tell whether the file is sound and every program loads it."""
        return not self.problems and all(one.loads for one in self.verdicts)


@dataclass(frozen=True)
class Program:
    """Rules by which a program reads adapter files.

    `takes` says whether it knows a layer under the name that the file has for it; the texts say what it does where a
    key matches nothing, where an alpha is missing, and where a size is wrong; `more` are rules of its own.
    """

    name: str
    takes: Callable[[Facts, Module], bool]
    unmatched: str
    sizes: str
    more: Callable[[Facts, int], Iterator[str]]
    alpha: str = say("layers without alpha act as if alpha were the rank")


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
        before = say("{name} cannot be used: {reason}.", name=path.name, reason="").rstrip(".")
        reason = error.message.removeprefix(before).rstrip(".")
        failed = tuple(Verdict(one.name, False, say("cannot be opened: {reason}", reason=reason)) for one in PROGRAMS)
        return Report(path.name, "unknown", 0, failed, (f"{reason[0].upper()}{reason[1:]}.",))
    found, strange = summary.layers(file)
    family = summary.family(file, found)
    model = summary.model(file, found, family)
    known = known if known and not model else layer_shapes.known(model or family or "sd15")
    facts = Facts(file, found, strange, family or "sd15", model, known)
    notes = (MICRO,) if model == "micro" else ()
    verdicts = tuple(_judge(program, facts) for program in PROGRAMS)
    problems = tuple(_problems(facts, by_name=family is None))
    return Report(path.name, TITLES[family] if family else "unknown", len(file.entries), verdicts, problems, notes)


def _problems(facts: Facts, *, by_name: bool) -> Iterator[str]:
    """List what is wrong with a file itself, whatever program reads it."""
    if not facts.layers:
        yield say("It has no layer of an adapter.")
        return
    if by_name and not any(facts.has(layer.module) for layer in facts.layers):
        yield say("It is for none of Stable Diffusion 1.x, 2.x and XL.")
    yield from _counted(facts)
    by_width, named = summary.width_of(facts.file, facts.layers)[0], summary.named_family(facts.file.metadata)
    if by_width and named and by_width != named:
        told = {"named": TITLES[named], "family": TITLES[by_width]}
        yield say("Its metadata say {named}, but its layers are those of {family}.", **told)


def _counted(facts: Facts) -> Iterator[str]:
    """List what is wrong with layers of a file: how many are affected, and the name of the first."""
    # fmt: off
    if names := facts.infinite:
        yield count("{n} tensor ({first}) has values that are not finite.",
                    "{n} tensors ({first}) have values that are not finite.", len(names), first=names[0][:100])
    if names := facts.halves:
        yield count("{n} layer ({first}) lacks a part, or its parts do not fit together.",
                    "{n} layers ({first}) lack a part, or their parts do not fit together.",
                    len(names), first=names[0][:100])
    if names := facts.misfits:
        yield count("{n} layer ({first}) has another size than in {family}.",
                    "{n} layers ({first}) have another size than in {family}.",
                    len(names), first=names[0][:100], family=TITLES[facts.family])
    if names := facts.twice:
        yield count("{n} layer ({first}) is in it twice, under two names.",
                    "{n} layers ({first}) are in it twice, under two names.", len(names), first=names[0][:100])
    if names := facts.without_alpha:
        yield count("{n} layer ({first}) lacks the alpha.", "{n} layers ({first}) lack the alpha.",
                    len(names), first=names[0][:100])
    if names := facts.strange:
        yield count("{n} key ({first}) belongs to no layer.", "{n} keys ({first}) belong to no layer.",
                    len(names), first=names[0][:100])
    # fmt: on


def _judge(program: Program, facts: Facts) -> Verdict:
    if not facts.layers:
        return Verdict(program.name, False, say("there is nothing in it that it could load"))
    if facts.model == "micro" and program.name != "diffusers":
        return Verdict(program.name, False, say("does not have the base model Micro, which this file is for"))
    lost = [
        key
        for layer in facts.layers
        for key in layer.parts.values()
        if not (facts.has(layer.module) and program.takes(facts, layer.module) and layer.kind)
    ] + facts.strange
    faults = []
    if lost:
        faults.append(say(
            "{number} of {all} keys match nothing ({first}): {what}", number=len(lost), all=len(facts.file.entries),
            first=lost[0][:80], what=program.unmatched,
        ))  # fmt: skip
    faults += program.more(facts, len(lost))
    if facts.halves:
        faults.append(say(
            "{layer} lacks a part or its parts do not fit together, which stops or spoils it", layer=facts.halves[0]
        ))  # fmt: skip
    if facts.misfits:
        faults.append(say("{layer} has a wrong size: {what}", layer=facts.misfits[0], what=program.sizes))
    if facts.without_alpha and program.alpha:
        faults.append(say("{layer} has no alpha: {what}", layer=facts.without_alpha[0], what=program.alpha))
    if facts.infinite:
        faults.append(say("values that are not finite make its pictures black"))
    loads = say("loads: all {number} keys", number=len(facts.file.entries))
    return Verdict(program.name, not faults, "; ".join(faults) or loads + _remark(program, facts))


def _remark(program: Program, facts: Facts) -> str:
    """List what is worth knowing about a file that loads."""
    kinds = {layer.kind for layer in facts.layers}
    if program.name == "sd-scripts" and kinds != {"LoRA"}:
        return say(", with --network_module lycoris.kohya")
    if program.name in ("ComfyUI", "Forge") and "DoRA" in kinds:
        return say(", but it takes DoRA's lengths relative to the base's weights, so that pictures differ slightly")
    if program.name == "sd-scripts" and facts.family == "sdxl" and _naming(facts) == {"diffusers"}:
        return say("; resuming a training from it does not work under these names")
    if program.name == "diffusers" and facts.model == "micro":
        return say(", with Micro's folder as the base model")
    return ""


def _naming(facts: Facts) -> set[str]:
    return {one.module.naming for one in facts.layers if one.module.place and one.module.place.component == "unet"}


# Names ----------------------------------------------------------------------------------------------------------


def _text(facts: Facts, module: Module, also: tuple[str, ...] = ()) -> bool:
    """Tell whether a text encoder's layer has the family's own prefix, or another that a program accepts."""
    place = module.place
    own = TEXT_PREFIXES[facts.family].get(place.component) if place else None
    return module.text_model and module.prefix in (own, *also)


def _comfy(facts: Facts, module: Module) -> bool:
    place = module.place
    if place is None:
        return False
    if place.component == "unet":
        if module.naming == "dotted":  # its map of dotted names is that of 2023, in which attention was a processor's
            return ".to_" not in module.name or ".processor.to_" in module.name
        return True
    if module.naming == "dotted":
        return module.text_model
    return _text(facts, module, ("lora_te_", "lora_te1_") if place.component == "text_encoder" else ())


def _a1111(facts: Facts, module: Module) -> bool:
    if module.place and module.place.component == "unet":
        return module.prefix != "lycoris_"
    return module.naming != "dotted" and _text(facts, module, () if facts.family == "sdxl" else ("lora_te1_",))


def _invoke(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted" or module.prefix == "lycoris_":
        return False
    if module.place and module.place.component == "unet":
        return facts.family == "sdxl" or module.naming == "diffusers"
    return _text(facts, module)


def _kohya(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted" or module.prefix == "lycoris_" or not module.place:
        return False
    if module.place.component == "unet":
        inside = module.place.block != "outside"
        return inside and (facts.family == "sdxl" or module.naming == "diffusers")
    return _text(facts, module)


def _diffusers(facts: Facts, module: Module) -> bool:
    if module.naming == "dotted":
        return bool(module.prefix) and ".processor." not in module.name
    if module.place and module.place.component == "unet":
        return module.prefix == "lora_unet_" and (facts.family == "sdxl" or module.naming == "diffusers")
    return _text(facts, module, ("lora_te_", "lora_te1_", "lora_te2_"))


def _sdnext(facts: Facts, module: Module) -> bool:
    if module.place and module.place.component == "unet":
        return True
    return module.naming != "dotted" and _text(facts, module)


# Rules of their own ---------------------------------------------------------------------------------------------


def _scale(facts: Facts, _: int) -> Iterator[str]:
    if facts.peft and facts.full_strength:
        yield say("the alpha stands in metadata that it does not read, so that the strength is wrong")


def _webui(facts: Facts, lost: int) -> Iterator[str]:
    yield from _scale(facts, lost)
    if not bytes(facts.file.data[8:10]).startswith(b'{"'):
        yield say('the header does not begin with {", which it insists on')
    for key in ("ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info"):
        text = facts.file.metadata.get(key, "{}")
        try:
            fine = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            yield say("{key} in the metadata is no table, at which its file list stumbles", key=key)


def _dora(facts: Facts) -> Iterator[str]:
    """A1111 and InvokeAI divide by a norm for each input, so that lengths for each output distort the whole weight."""
    if facts.dora_by_output:
        yield say("it applies DoRA's lengths along the other axis, which ruins the pictures")


def _rules_a1111(facts: Facts, lost: int) -> Iterator[str]:
    yield from _webui(facts, lost)
    yield from _dora(facts)
    told = facts.file.metadata
    if told:
        shown: FamilyName = "sd21" if told.get("ss_v2") == "True" else "sd15"
        shown = "sdxl" if told.get("ss_base_model_version", "").startswith("sdxl_") else shown
        if shown != facts.family:
            named = {"shown": TITLES[shown], "family": TITLES[facts.family]}
            yield say("by its metadata it is filed as {shown}, and hidden for {family}", **named)


def _rules_forge(facts: Facts, lost: int) -> Iterator[str]:
    yield from _webui(facts, lost)
    if lost > _FORGE_LIMIT:
        yield say("more than {number} such keys, so that it refuses the whole file", number=_FORGE_LIMIT)


def _rules_invoke(facts: Facts, _: int) -> Iterator[str]:
    yield from _dora(facts)
    if facts.family == "sdxl" and {"original", "diffusers"} <= _naming(facts):
        yield say("it refuses names of both kinds in one file")
    if facts.file.metadata.get("format", "pt") not in ("pt", "torch", "pytorch"):
        yield say("it refuses this `format` in the metadata")
    if not facts.peft and summary.width_of(facts.file, facts.layers)[0] != facts.family:
        yield say("it cannot tell the family, for which it goes by the sizes of cross-attention or text encoder")


def _rules_kohya(facts: Facts, _: int) -> Iterator[str]:
    if facts.family == "sdxl" and {"original", "diffusers"} <= _naming(facts):
        yield say("of names of both kinds in one file it takes one")


def _rules_diffusers(facts: Facts, _: int) -> Iterator[str]:
    if not facts.peft and not all(key.startswith(layer_names.PREFIXES) for key in facts.file.entries):
        yield say("it takes a file as kohya's only if all keys begin as such, so that it raises an error")
    if not facts.peft and PEFT_SETTINGS in facts.file.metadata:
        yield say("it refuses {key} beside alphas", key=PEFT_SETTINGS)
    if facts.twice:
        yield say("of {layer}, which is there twice, it drops one", layer=facts.twice[0])
    if facts.without_alpha and len(facts.without_alpha) == len(facts.layers):
        yield say("no layer has an alpha: all act as if it were the rank")
    for one in ("text_encoder", "text_encoder_2"):
        paths = [layer.module.place.path for layer in facts.layers
                 if layer.module.place and layer.module.place.component == one]  # fmt: skip
        if paths and not facts.peft and not any(path.endswith("out_proj") for path in paths):
            yield say("it does not know the form of a text encoder's layers when no out_proj is among them, and stops")
    if not facts.peft and {layer.kind for layer in facts.layers} & {"DoRA", "LoHa", "LoKr"}:
        yield say("it does not read this kind of adapter in kohya's form; DoRA loses its lengths")


_RESHAPES = say("it reshapes what does not fit, and then does something else without a word")
_STOPS, _LEFT_OUT = say("it stops with an error"), say("left out")
PROGRAMS = (
    Program("ComfyUI", _comfy, say("left out, with a line in the log only"), _RESHAPES, _scale),
    Program("A1111", _a1111, _LEFT_OUT, say("it stops or does something else"), _rules_a1111),
    Program("Forge", _comfy, _LEFT_OUT, _RESHAPES, _rules_forge),
    Program("InvokeAI", _invoke, _STOPS, _STOPS, _rules_invoke),
    Program("sd-scripts", _kohya, say("left out without a word"), _STOPS, _rules_kohya),
    Program("diffusers", _diffusers, _STOPS, _STOPS, _rules_diffusers, alpha=""),
    Program("SD.Next", _sdnext, _LEFT_OUT, _STOPS, _scale),
)  # fmt: skip
