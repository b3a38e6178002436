"""Judge what other programs do with an adapter file, by their rules (`programs`).

A verdict says what a program does with the file: it loads and applies it as meant, loads it and does something else
(how much, and why), loads nothing, or refuses it. Only names, sizes and metadata are looked at, without torch, so that
any file is judged in a moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import foreign_text
from trainer.adapter_files import peft_settings, safetensors_reader, summary
from trainer.adapter_files.facts import Facts
from trainer.adapter_files.family_rules import SUPPORT, Support
from trainer.adapter_files.peft_settings import METADATA as PEFT_METADATA
from trainer.adapter_files.programs import PROGRAMS, Program, Reading
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.registry import DEFAULT, FAMILIES
from trainer.base_models.spec import Shape
from trainer.errors import UserError
from trainer.i18n import _, ngettext

_EMBEDDING = "bundle_emb."  # how keys of OneTrainer's embeddings begin
_MATRICES = ("lora_A.weight", "lora_B.weight", "lora.down.weight", "lora.up.weight")
Outcome = Literal["right", "differs", "nothing", "refuses"]
MICRO = _("It is for Micro, the base model built into Limner, which other programs do not have.")


@dataclass(frozen=True)
class Verdict:
    """Verdict on a file for one program; it `loads` if the program applies all of it as meant."""

    program: str
    loads: bool
    words: str
    outcome: Outcome


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
        """True if the file is sound and every program loads it."""
        return not self.problems and all(verdict.loads for verdict in self.verdicts)


def check(path: Path, known: Mapping[str, Shape] | None = None) -> Report:
    """Apply all rules to a file.

    Args:
        path: of the file.
        known: weight shapes by `component:path` of the base model that it is for, where that is at hand; they are used
            if the sizes are not those of a published model or of Micro.

    Raises:
        UserError: there is no such file.
    """
    try:
        file = safetensors_reader.read(path)
    except UserError as error:
        if not path.is_file():
            raise
        return _unreadable(path.name, error)
    return of_file(file, path.parent, known)


def of_file(file: SafetensorsFile, folder: Path, known: Mapping[str, Shape] | None = None) -> Report:
    """Apply all rules to a file that was read already, as `check` does; PEFT keeps settings beside it in its folder."""
    layers, unknown_keys = summary.layers(file)
    family = summary.family(file, layers)
    model = summary.model(file, layers, family)
    if model or not known:
        known = layer_shapes.known(model or family or DEFAULT)
    settings, damage = peft_settings.NONE, list[str]()
    try:
        settings = peft_settings.find(file, folder)
    except UserError as error:
        damage.append(error.message)
    facts = Facts(file, layers, unknown_keys, family or DEFAULT, model, known, settings)
    notes = (MICRO,) if model == "micro" else ()
    verdicts = tuple(_judge(program, facts) for program in PROGRAMS)
    problems = (*damage, *_problems(facts, known_family=family is not None))
    title = FAMILIES[family].title if family else "unknown"
    return Report(file.name, title, len(file.entries), verdicts, problems, notes)


def _unreadable(name: str, error: UserError) -> Report:
    """Return the report on a file that was refused: no program can do anything with it."""
    opening = _("{name} cannot be used: {reason}.", name=name, reason="").rstrip(".")
    reason = error.message.removeprefix(opening).rstrip(".")
    refused = _("cannot be opened: {reason}", reason=reason)
    verdicts = tuple(Verdict(program.name, False, refused, "refuses") for program in PROGRAMS)
    return Report(name, "unknown", 0, verdicts, (f"{reason[0].upper()}{reason[1:]}.",))


def _problems(facts: Facts, *, known_family: bool) -> Iterator[str]:
    """List what is wrong with a file itself, whatever program reads it."""
    if not facts.layers:
        yield _("It has no adapter layers.")
        return
    if not known_family and not any(facts.has(layer.module) for layer in facts.layers):
        yield _("It is not for any of the families that Limner trains.")
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
    yield from _counted(
        facts.not_finite,
        "{n} tensor ({first}) has values that are not finite.",
        "{n} tensors ({first}) have values that are not finite.",
    )
    yield from _counted(
        summary.not_float(facts.file, facts.layers),
        "{n} tensor ({first}) has whole numbers instead of fractions.",
        "{n} tensors ({first}) have whole numbers instead of fractions.",
    )
    yield from _counted(
        facts.incomplete,
        "{n} layer ({first}) lacks a tensor, or its tensors do not fit together.",
        "{n} layers ({first}) lack a tensor, or their tensors do not fit together.",
    )
    yield from _counted(
        facts.misfits,
        "{n} layer ({first}) has a different size than in {family}.",
        "{n} layers ({first}) have a different size than in {family}.",
        family=facts.spec.title,
    )
    yield from _counted(
        facts.twice,
        "{n} layer ({first}) is in it twice, under two names.",
        "{n} layers ({first}) are in it twice, under two names.",
    )
    yield from _counted(facts.without_alpha, "{n} layer ({first}) has no alpha.", "{n} layers ({first}) have no alpha.")
    yield from _counted(
        facts.unknown_keys, "{n} key ({first}) belongs to no layer.", "{n} keys ({first}) belong to no layer."
    )


def _counted(names: Sequence[str], singular: str, plural: str, **values: str) -> Iterator[str]:
    """Say how many tensors, layers or keys are affected, and the name of the first; nothing if none is."""
    if names:
        yield ngettext(singular, plural, len(names), first=names[0][:100], **values)


def _lenient(program: Program, facts: Facts) -> bool:
    """Return True if a program leaves out what it does not know in the format of a file, whatever it does elsewhere."""
    return program.lenient_with_peft and (facts.peft or facts.generic)


def _judge(program: Program, facts: Facts) -> Verdict:
    if not facts.layers:
        return Verdict(program.name, False, _("it has nothing that could be loaded"), "nothing")
    if facts.model == "micro" and program.name != "diffusers":
        words = _("does not have the base model Micro, which this file is for")
        return Verdict(program.name, False, words, "refuses")
    support = _support(program, facts)
    if facts.spec.transformer and not support:
        words = _("does not load adapters for {family}", family=facts.spec.title)
        return Verdict(program.name, False, words, "refuses")
    applied, left_out = list[Layer](), list[Layer]()
    for layer in facts.layers:
        (applied if _applies(program, facts, layer) else left_out).append(layer)
    unknown = [
        layer
        for layer in left_out
        if not (support and support.drops(facts.transformer_name(layer), layer.module.place, facts.transformer_names))
    ]
    unmatched = [key for layer in unknown for key in layer.parts.values()]
    # Embeddings change nothing else where they are skipped.
    unmatched += [key for key in facts.unknown_keys if program.name == "diffusers" or not key.startswith(_EMBEDDING)]
    unmatched += [layer.parts["dora_scale"] for layer in applied if layer.by_ai_toolkit]
    unmatched += [layer.parts["diff_b"] for layer in applied if layer.has_peft_bias and not program.reads_peft]
    others = [layer for layer in applied if layer.algorithm != "full" and not layer.has_peft_bias]
    biases = [layer.parts["diff_b"] for layer in others if "diff_b" in layer.parts]
    if program.biases == "leaves out":
        unmatched += biases
    refusals = list(_refusals(program, facts, unmatched))
    if biases and program.biases == "stops":
        refusals.append(_("it adds the change of a bias to the weights, and stops"))
    if refusals:
        return Verdict(program.name, False, _("refuses it: {reasons}", reasons="; ".join(refusals)), "refuses")
    reasons = list(_unmatched(program, facts, unmatched))
    if len(left_out) == len(facts.layers):
        return Verdict(program.name, False, _("loads nothing: {reasons}", reasons="; ".join(reasons)), "nothing")
    reasons += _differences(program, facts, applied)
    if reasons:
        return Verdict(program.name, False, _("loads, but differs: {reasons}", reasons="; ".join(reasons)), "differs")
    loads = _("loads: all {number} keys", number=len(facts.file.entries))
    return Verdict(program.name, True, loads + _remark(program, facts), "right")


def _applies(program: Program, facts: Facts, layer: Layer) -> bool:
    """Return True if a program applies a layer in whatever way."""
    module, support = layer.module, _support(program, facts)
    if not module.place or not facts.has(module) or _reading(program, facts, layer) is None:
        return False
    if support and support.kinds is not None and facts.kind_of(layer) not in support.kinds:
        return False
    if support and (name := facts.transformer_name(layer)):
        if support.beside.get(name) == "needs" and not any("alpha" in layer.parts for layer in facts.layers):
            return False
        return support.applies(name, module.place) and not (name in support.alone and facts.beside_blocks)
    if program.name == "sd-scripts" and not facts.by_lycoris and module.place.block == "outside":
        return False  # its own network is attached to blocks alone
    if module.path == layer_names.TEXT_PROJECTION and not program.text_projection:
        return program.name == "sd-scripts" and facts.by_lycoris
    if program.name == "sd-scripts" and facts.by_lycoris and facts.unet_name(layer) == "diffusers":
        return not facts.spec.original_names
    if module.name in {"A1111": facts.lost_of_openclip, "diffusers": facts.lost_of_diffusers}.get(program.name, ()):
        return False
    return facts.unet_name(layer) in program.unet_names or facts.text_name(layer) in program.text_names


def _support(program: Program, facts: Facts) -> Support | None:
    """Return what a program does with adapters for a transformer; None if it reads none, or the denoiser is a UNet."""
    return SUPPORT.get(facts.family, {}).get(program.name)


def _reading(program: Program, facts: Facts, layer: Layer) -> Reading | None:
    """Return how a program reads a kind of layer, None if it does not."""
    kind = facts.kind_of(layer)
    return program.reads.get(kind) or program.reads.get(kind.partition(" by ")[0])


def _unmatched(program: Program, facts: Facts, keys: list[str]) -> Iterator[str]:
    what = program.unmatched
    if _lenient(program, facts):
        what = _("left out")
    if keys:
        yield _(
            "{number} of {all} keys match nothing ({first}): {what}",
            number=len(keys),
            all=len(facts.file.entries),
            first=keys[0][:80],
            what=what,
        )


def _differences(program: Program, facts: Facts, layers: list[Layer]) -> Iterator[str]:
    """List how the effect of the layers that a program applies differs from the one that is meant."""
    if left_out := len(facts.layers) - len(layers):
        yield _("{number} of {all} layers are without effect", number=left_out, all=len(facts.layers))
    yield from _differences_of_kinds(program, facts, layers)
    if support := _support(program, facts):
        names = {facts.transformer_name(layer) for layer in layers}
        yield from (reason for name, reason in support.differs.items() if name in names)
    yield from _metadata_faults(program, facts)
    if facts.incomplete:
        yield _(
            "{layer} lacks a tensor or its tensors do not fit together, which stops or spoils it",
            layer=facts.incomplete[0],
        )
    if facts.misfits:
        yield _("{layer} has a wrong size: {what}", layer=facts.misfits[0], what=program.wrong_size)
    if facts.without_alpha and program.missing_alpha:
        yield _("{layer} has no alpha: {what}", layer=facts.without_alpha[0], what=program.missing_alpha)
    if program.name == "diffusers" and facts.without_alpha and len(facts.without_alpha) == len(facts.layers):
        yield _("no layer has an alpha: all act as if it were the rank")
    if program.name == "diffusers" and facts.twice:
        yield _("{layer} is there twice, and it drops one of them", layer=facts.twice[0])
    if program.name == "sd-scripts" and facts.both_namings:
        yield _("of a file with both kinds of names it loads one kind")
    if facts.not_finite:
        yield _("values that are not finite make its images black")


def _differences_of_kinds(program: Program, facts: Facts, layers: list[Layer]) -> Iterator[str]:
    readings = [(layer, reading) for layer in layers if (reading := _reading(program, facts, layer))]
    yield from dict.fromkeys(reading.differs for _layer, reading in readings if reading.differs)
    yield from dict.fromkeys(reading.scaled for layer, reading in readings if reading.scaled and facts.is_scaled(layer))
    support = _support(program, facts)
    if support and any(facts.is_scaled_beside_a(layer, support.beside) for layer in layers):
        yield _("it drops alphas, and lengths of a DoRA, beside lora_A")
    if facts.scaled_by_settings and not program.reads_peft:
        yield _("it does not read the alpha in the metadata, so that the strength is wrong")


def _metadata_faults(program: Program, facts: Facts) -> Iterator[str]:
    if program.name in ("A1111", "Forge"):
        if not facts.file.header.startswith(b'{"'):
            yield _('the header does not begin with {", which it insists on')
        for key in ("ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info"):
            try:
                table = foreign_text.parse_json(facts.file.metadata.get(key, "{}"))
            except foreign_text.ForeignTextError:
                table = None
            if not isinstance(table, dict):
                yield _("{key} in the metadata is not a JSON object, which breaks its file list", key=key)
    listed = facts.listed_by_a1111
    if program.name == "A1111" and facts.spec.unet and listed and listed != facts.family:
        yield _(
            "its metadata list it under {listed}, so that it is hidden for {family}",
            listed=FAMILIES[listed].title,
            family=facts.spec.title,
        )


def _refusals(program: Program, facts: Facts, unmatched: list[str]) -> Iterator[str]:
    """List why a program does not load a file at all."""
    support = _support(program, facts)
    strict = program.strictness == "refuses"
    if support:
        strict = support.refuses_unmatched
        yield from dict.fromkeys(reason for name, reason in support.stops.items() if name in facts.transformer_names)
    if strict and len(unmatched) > program.limit and not _lenient(program, facts):
        yield from _unmatched(program, facts, unmatched)
        if program.limit:
            yield _("more than {number} such keys, so that it refuses the whole file", number=program.limit)
    for kind, reason in program.refused_kinds.items():
        if support and support.kinds is not None:
            break  # other code of it reads these
        if any(facts.kind_of(layer).startswith(kind) for layer in facts.layers):
            yield reason
            break
    if program.name == "InvokeAI":
        yield from _invoke_refusals(facts, support)
    if program.name == "sd-scripts" and facts.by_lycoris and facts.without_alpha:
        yield _("{layer} has no alpha, without which LyCORIS stops", layer=facts.without_alpha[0])
    if program.name == "diffusers":
        yield from _diffusers_refusals(facts)


def _invoke_refusals(facts: Facts, support: Support | None) -> Iterator[str]:
    if support:
        stops = any(support.beside.get(name) == "stops" for name in facts.transformer_names)
        if stops and not all(key.endswith(_MATRICES) for key in facts.file.entries):
            yield _("it does not know these names beside anything but the matrices of a LoRA")
        return
    if facts.both_namings:
        yield _("it refuses a file with both kinds of names")
    if facts.file.metadata.get("format", "pt") not in ("pt", "torch", "pytorch"):
        yield _("it refuses this `format` in the metadata")
    prefixes = ("lora_unet_", *facts.spec.prefixes.values(), "bundle_emb")
    if facts.spec.original_names and not all(key.startswith(prefixes) for key in facts.file.entries):
        yield _("it stops at a key without one of the prefixes {prefixes}", prefixes=", ".join(prefixes[:-1]))
    if {layer.kind for layer in facts.layers} & {"GLoRA", "OFT", "OFTv2", ""}:
        yield _("it stops at a layer of a kind that it does not read")
    if facts.family_for_invoke != facts.family:
        yield _("it cannot detect the family, which it does by the widths of cross-attention or text encoder")


def _diffusers_refusals(facts: Facts) -> Iterator[str]:
    if facts.peft or facts.generic:
        support = SUPPORT.get(facts.family, {}).get("diffusers")
        reads_alphas = support and all(name in support.beside for name in facts.transformer_names)
        keys = [key for key in facts.file.entries if not (reads_alphas and key.endswith(".alpha"))]
        if not all("lora" in key for key in keys):
            yield _('it stops at a key without "lora" in it')
        return
    if facts.spec.transformer:
        return  # it does not look for kohya's format
    if not all(key.startswith(layer_names.PREFIXES) for key in facts.file.entries):
        yield _("it recognizes kohya's format only if all keys have its prefixes, and stops with an error")
    if PEFT_METADATA in facts.file.metadata:
        yield _("it refuses {key} beside alphas", key=PEFT_METADATA)
    for component in facts.spec.prefixes:
        paths = [layer.module.path for layer in facts.layers if layer.module.component == component]
        if paths and not any(path.endswith("out_proj") for path in paths):
            yield _("it does not recognize a text encoder's layers without an out_proj among them, and stops")


def _remark(program: Program, facts: Facts) -> str:
    """Describe what is worth knowing about a file that loads; "" if nothing is."""
    if any(key.startswith(_EMBEDDING) for key in facts.unknown_keys) and program.name not in ("A1111", "SD.Next"):
        return _(", but the embedding in it is left out")
    if program.name == "sd-scripts" and facts.unet_names & {"oft", "oft diffusers"}:
        return _(", with --network_module networks.oft")
    if program.name == "sd-scripts" and facts.by_lycoris:
        return _(", with --network_module lycoris.kohya")
    if program.name == "sd-scripts" and facts.spec.original_names and facts.unet_names == {"diffusers"}:
        return _("; training cannot be resumed from it under these names")
    if program.name == "A1111" and any(facts.kind_of(layer) == "LoKr" for layer in facts.layers):
        return _("; it multiplies in fp16, in which a LoKr with factors is off where it changes little")
    if program.name == "diffusers" and facts.model == "micro":
        return _(", with Micro's folder as the base model")
    return ""
