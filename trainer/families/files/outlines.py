"""A base model as its configs describe it, without weights: for the names and shapes of its layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import transformers
from torch import nn

from trainer import devices, foreign_text
from trainer.base_models import CONFIGS, hub
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.devices import Untyped
from trainer.errors import UserError


class Outline(SimpleNamespace):
    """Parts of a pipeline that an adapter is for, and its scheduler; all others are None."""

    def register_to_config(self, **_settings: Untyped) -> None:
        """Ignore settings of a pipeline that generates images."""


def build(path: Path, base: Base) -> Outline:
    """Return the parts of a base model. The configs of a single file are those of its published model.

    Raises:
        UserError: a config is missing or damaged.
    """
    spec, whole = FAMILIES[base.family], path if path.is_dir() else CONFIGS / base.family
    own = whole if path.is_dir() or not base.size else CONFIGS / base.size.configs
    large = spec.encoder_of(base.size)
    try:
        index = foreign_text.read_json(hub.index(whole))
        classes = {name: str(part[1]) for name, part in index.items() if isinstance(part, list) and part[0]}
        parts: dict[str, Any] = dict.fromkeys([*classes, *([large.component] if large else [])])
        for name in classes.keys() & {spec.denoiser, *(encoder.component for encoder in spec.text_encoders)}:
            parts[name] = _model(classes[name], (own if name == spec.denoiser else whole) / name)
        scheduler = getattr(diffusers, classes["scheduler"])
        parts["scheduler"] = scheduler.from_pretrained(whole / "scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            "The configs of the base model {name!r} cannot be read.",
            "Check that it is complete and in safetensors format.",
            name=path.name,
        ) from error
    return Outline(**parts)


def _model(kind: str, folder: Path) -> nn.Module:
    """Return a model of diffusers or transformers as the config in its folder says, without weights."""
    with devices.NOWHERE:
        if model := getattr(diffusers, kind, None):
            built: nn.Module = model.from_config(model.load_config(folder))
        else:
            model = getattr(transformers, kind)
            built = model(model.config_class.from_pretrained(folder, local_files_only=True))
    return built.requires_grad_(False).eval()
