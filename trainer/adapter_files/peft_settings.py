"""Settings that PEFT keeps apart from its tensors, among them alpha: in the metadata, or in a file beside them.

diffusers writes them into the metadata, by component; PEFT itself writes `adapter_config.json`. Needs no torch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer import foreign_text
from trainer.adapter_files.safetensors_reader import SafetensorsFile, refusal
from trainer.base_models.layer_names import Place
from trainer.foreign_text import Json

METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
OWN_PREFIX = "base_model.model."  # of keys in files that PEFT itself wrote
MAX_TERMS = 100  # of OFT's Neumann series, each of which multiplies matrices
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Patterns:
    """Values of the layers that patterns name, each a path or a regular expression."""

    entries: Any  # as a file has them, by pattern

    def value(self, path: str) -> Json:
        """Return the value of the first pattern that a layer's path, or an ending of it, matches, as PEFT does."""
        parts = path.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts))]
        hits = [self._plain[ending] for ending in endings if ending in self._plain]
        for order, pattern, value in self._expressions:
            if pattern.match(path):
                hits.append((order, value))
                break
        return min(hits, key=lambda hit: hit[0])[1] if hits else None

    @cached_property
    def _plain(self) -> dict[str, tuple[int, Any]]:
        """Patterns that are paths, which most are: their order and value."""
        return {key: (order, value) for order, (key, value) in enumerate(self._items) if not _is_expression(key)}

    @cached_property
    def _expressions(self) -> list[tuple[int, re.Pattern[str], Any]]:
        expressions = [(order, key, value) for order, (key, value) in enumerate(self._items) if _is_expression(key)]
        return [(order, re.compile(rf"(.*\.)?({key})$"), value) for order, key, value in expressions]

    @property
    def _items(self) -> list[tuple[str, Any]]:
        items = self.entries.items() if isinstance(self.entries, dict) else ()
        return [(re.sub(r"text_model\\?\.", "", key), value) for key, value in items]


@dataclass(frozen=True)
class Scaling:
    """Scaling of the layers of a component by PEFT."""

    settings: Mapping[str, Any]

    @property
    def alpha(self) -> Json:
        """The alpha of layers that no pattern names; None if it is not known."""
        return self.settings.get("lora_alpha", self.settings.get("alpha"))

    def alpha_of(self, path: str, rank: int) -> float:
        """Return a layer's alpha with the scale alpha / rank; its rank, for a scale of 1, if none is known."""
        alpha = self._alphas.value(path)
        if alpha is None:
            alpha = rank if self.alpha is None else self.alpha
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            return math.nan
        return alpha * math.sqrt(rank) if self.settings.get("use_rslora") is True else float(alpha)

    def scale_of(self, path: str) -> float:
        """Return the scale of a layer whose tensors have no rank, which PEFT scales as any other; 1 if not known."""
        rank = self._ranks.value(path) or self.settings.get("r")
        rank = max(1, rank) if isinstance(rank, int) else 1
        return self.alpha_of(path, rank) / rank

    @cached_property
    def oft(self) -> tuple[int, float] | None:
        """The terms of OFT's Neumann series, 0 for the exact transform, and the limit of a rotation, infinite for none.

        None if the settings are not those of OFT.

        Raises:
            ValueError: they are damaged, as for a KeyError.
        """
        if (neumann := self.settings.get("use_cayley_neumann")) is None:
            return None
        terms = self.settings["num_cayley_neumann_terms"] if neumann else 0
        limit = self.settings["eps"] if self.settings["coft"] else math.inf
        if type(terms) is not int or not 0 <= terms <= MAX_TERMS or not isinstance(limit, int | float) or limit <= 0:
            raise ValueError
        return terms, float(limit)

    @cached_property
    def _alphas(self) -> Patterns:
        return Patterns(self.settings.get("alpha_pattern"))

    @cached_property
    def _ranks(self) -> Patterns:
        return Patterns(self.settings.get("rank_pattern"))


@dataclass(frozen=True)
class PeftSettings:
    """Scaling of each component, and of those that have none of their own."""

    by_component: Mapping[str, Scaling]
    common: Scaling

    def of(self, place: Place) -> Scaling:
        """Return the scaling of the component that a layer is in."""
        return self.by_component.get(place.component, self.common)


NONE = PeftSettings({}, Scaling({}))


def find(file: SafetensorsFile, folder: Path | None) -> PeftSettings:
    """Return the settings in a file's metadata, or in the folder that it is in if PEFT wrote it.

    Raises:
        UserError: they are damaged, or have patterns that might take too long to match.
    """
    # diffusers applies them whatever the form, but refuses them beside alphas, which the names of kohya's form have.
    components: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    if METADATA in file.metadata and not all(key.startswith(("lora_", "lycoris_")) for key in file.entries):
        for key, value in _parse(file.metadata[METADATA], file.name, METADATA).items():
            component, _, name = key.partition(".")
            components.setdefault(component, {})[name] = value
    elif folder and (folder / CONFIG).is_file() and any(key.startswith(OWN_PREFIX) for key in file.entries):
        with (folder / CONFIG).open("rb") as source:
            settings = _parse(source.read(_MAX_BYTES).decode("utf-8", "replace"), file.name, CONFIG)
    by_component, common = {component: Scaling(values) for component, values in components.items()}, Scaling(settings)
    for scaling in (common, *by_component.values()):
        _check(scaling, file.name)
    return PeftSettings(by_component, common)


def _parse(text: str, name: str, where: str) -> dict[str, Any]:
    try:
        settings = foreign_text.parse_json(text)
    except foreign_text.ForeignTextError:
        settings = None
    if not isinstance(settings, dict):
        raise refusal(name, "its {peft_metadata} is damaged", peft_metadata=where)
    return settings


def _is_expression(pattern: str) -> bool:
    return re.fullmatch(r"[\w.]*", pattern) is None


def _check(scaling: Scaling, name: str) -> None:
    """Refuse what makes no sense or may take long, such as patterns: anybody may have written it."""
    try:
        _ = scaling.oft
    except (KeyError, ValueError):
        raise refusal(name, "its {peft_metadata} is damaged", peft_metadata="use_cayley_neumann") from None
    settings = [scaling.settings.get(name) for name in ("alpha_pattern", "rank_pattern")]
    patterns = [pattern for entries in settings if isinstance(entries, dict) for pattern in entries]
    expressions = [pattern for pattern in patterns if _is_expression(pattern)]
    for pattern in expressions:
        # Time grows exponentially only if a group is repeated, and with the length to the power of the repeats.
        repeats = len(re.findall(r"[*+{]", pattern))
        strange = re.search(r"\)[*+{]|\(\?(?!:)|\\\d", pattern)
        if len(pattern) > 300 or len(expressions) > 20 or repeats > 3 or strange:
            raise refusal(name, "it has a pattern for alpha that is too complex ({pattern})", pattern=pattern[:100])
        try:
            re.compile(pattern)
        except re.error:
            raise refusal(name, "its {peft_metadata} is damaged", peft_metadata="alpha_pattern") from None
