"""Names of a base model, and what they tell that its tensors do not: anime models need clip skip 2."""

import re
from collections.abc import Mapping
from pathlib import Path

from trainer.base_models import hub

# NovelAI's model of 2022 was trained on the penultimate layer of the text encoder, and so were those made from it.
_ANIME = re.compile(
    r"(?<![a-z])nai(?![a-z])|novel_?ai|anime|anything|any_?lora|abyss_?orange|orange_?mix|(?<![a-z])aom\d|counterfeit|"
    r"meina|pastel_?mix|hassaku|cetus_?mix|dark_?sushi|grapefruit|mistoon|toonyou|ghost_?mix|rev_?animated",
    re.IGNORECASE,
)
_METADATA = ("modelspec.title", "modelspec.tags", "ss_output_name", "ss_sd_model_name")


def names(path: Path, metadata: Mapping[str, object]) -> str:
    """Return the names that a base model has: of its file or folder, its repository on the hub, and in its metadata."""
    texts = [path.stem if path.suffix == ".safetensors" else path.name, hub.repository(path)]
    texts += [str(metadata[key]) for key in _METADATA if key in metadata]
    return re.sub(r"[\s.-]+", "_", " / ".join(texts))


def clip_skip(names: str) -> int:
    """Return the clip skip that a Stable Diffusion 1.x model of these names most probably needs."""
    return 2 if _ANIME.search(names) else 1
