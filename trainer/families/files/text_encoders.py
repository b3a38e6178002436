"""Load text encoders from single files: from that of a base model, or from files of their own beside it."""

from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.base_models import CONFIGS, detect
from trainer.base_models.registry import FamilyName
from trainer.base_models.spec import LargeEncoder, TextEncoder
from trainer.families.files import weights

UNPROJECTED = "text_projection.weight"
IGNORED = ("position_ids", "logit_scale")  # last parts of keys that change nothing
OTHER_HALF = ("vision_model.", "visual_projection.")  # of whole CLIP models, which see images, too


def has_large(path: Path, encoder: LargeEncoder) -> bool:
    """Return True if a base model has its large text encoder: in its folder, in its file, or beside it."""
    if path.is_dir():
        return any((path / encoder.component).glob("*.safetensors"))
    with safe_open(path, "pt") as tensors:
        return encoder.key in set(tensors.keys()) or detect.find_beside(path, encoder.file_name) is not None


def of_2022(path: Path, family: FamilyName, encoder: TextEncoder) -> CLIPTextModel:
    """Load a text encoder from a single file whose keys lack `text_model.`, which diffusers cannot do."""
    model = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / family / encoder.component))
    _fill(model, path, encoder.single_file)
    return model


def _fill(model: nn.Module, path: Path, prefix: str) -> None:
    """Load a text encoder's weights, whose names in the file may lack `text_model.`, or those of the model may.

    Raises:
        ValueError: weights are missing, or there are others.
    """
    names, state, unused = set(model.state_dict()), dict[str, Tensor](), list[str]()
    with weights.opened(path) as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dict
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            candidates = (name, f"text_model.{name}", name.removeprefix("text_model."))
            if own := [candidate for candidate in candidates if candidate in names]:
                state[own[0]] = tensors.get_tensor(key)
            elif not (name.startswith(OTHER_HALF) or name.endswith(IGNORED) or UNPROJECTED in candidates):
                unused.append(key)
    model.load_state_dict(state, strict=False)
    if missing := names - state.keys() - {UNPROJECTED}:
        raise ValueError(f"{path.name} has no {min(missing)}")
    if unused:
        raise ValueError(f"{path.name} has {min(unused)}, which no such text encoder has")


def in_file(path: Path, family: FamilyName, encoder: TextEncoder) -> nn.Module:
    """Load a CLIP text encoder from a file of its own."""
    folder = CONFIGS / family / encoder.component
    config = CLIPTextConfig.from_pretrained(folder)
    model: nn.Module = getattr(transformers, config.architectures[0])(config)
    _fill(model, path, "")
    if not encoder.projected:  # whatever the file says, as diffusers does for single files
        nn.init.eye_(model.get_parameter(UNPROJECTED))
    return model


def large(path: Path, encoder: LargeEncoder, config: Path, dtype: torch.dtype) -> nn.Module:
    """Load a large text encoder from a single file, a file of its own or its folder.

    It takes no random numbers first, and reads nothing of a larger model that its class does not have.

    Raises:
        ValueError: weights are missing, or there are others.
    """
    kind = getattr(transformers, encoder.model)
    with init_empty_weights():
        model: nn.Module = kind(kind.config_class.from_pretrained(config))
    names, state = set(model.state_dict()), dict[str, Tensor]()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with weights.opened(file, dtype) as tensors:
            keys = tensors.keys()
            for key in [key for key in keys if key.startswith(encoder.single_file)] or keys:
                name = _below(encoder.first_level, key.removeprefix(encoder.single_file))
                if not name.startswith(encoder.unused):
                    state[name] = tensors.get_tensor(key)
    if unused := state.keys() - names:
        raise ValueError(f"{path.name} has {min(unused)}, which {encoder.title} does not have")
    if missing := names - state.keys() - encoder.twice:
        raise ValueError(f"{path.name} has no {min(missing)}")
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    return model


def _below(levels: tuple[str, ...], key: str) -> str:
    """Return a key without the first of these prefixes that it has."""
    return key.removeprefix(next((level for level in levels if key.startswith(level)), ""))
