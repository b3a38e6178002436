"""Tiny models of each family, loaded and asked; and a card that weights wait beside."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tiny import MAKERS
from trainer import families
from trainer.base_models import hub
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config import ModelConfig
from trainer.families import Adapter, Family
from trainer.families.hardware import offload
from trainer.rng import generator

KINDS = tuple(MAKERS)
CPU = torch.device("cpu")
VIEWS = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


def family_of(kind: str) -> FamilyName:
    return kind.partition("-")[0]  # type: ignore[return-value] # kinds are named so


UNETS = tuple(kind for kind in KINDS if FAMILIES[family_of(kind)].unet)
TRANSFORMERS = tuple(kind for kind in KINDS if FAMILIES[family_of(kind)].transformer)


def each(kinds: Iterable[str]) -> list[Any]:
    """Return kinds as parameters: one UNet and one transformer whenever tests are run, the others in CI."""
    return [pytest.param(kind, marks=() if kind in ("sdxl", "z_image") else pytest.mark.slow) for kind in kinds]


def options_of(kind: str) -> dict[str, Any]:
    """Return the settings of a run that trains the text encoders, too, if they take an adapter, with small previews."""
    text_encoder = bool(FAMILIES[family_of(kind)].text_encoders)
    return {"training__text_encoder": text_encoder, "preview__prompts": ["rin --w 64 --h 64"]}


def fresh(base: Path, **parts: Any) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
    """Return a model as diffusers' own pipeline, or the one of its blocks."""
    if hub.index(base).name != hub.INDEX:
        blocks = diffusers.ModularPipeline.from_pretrained(str(base), local_files_only=True)
        blocks.load_components(**parts)
        blocks.set_progress_bar_config(disable=True)
        return blocks
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(base: Path, **model: Any) -> Family:  # noqa: ANN401 - any settings
    return families.load(ModelConfig(base=str(base), **model), CPU, torch.float32)


def question(family: Family) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    noisy = torch.randn(2, family.latent_shape[0], 8, 8, generator=generator(1))
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64], [1023.0, 700, 3, 5, 64, 64]])
    return noisy, torch.tensor([10, 900]), {**family.encode_prompts(["rin, smiling", ""]), "sizes": sizes}


def answer(family: Family) -> Tensor:
    with torch.no_grad():
        return family.predict(*question(family))


def taken_from(adapter: families.Adapter) -> list[Tensor]:
    """Return the gradients of an adapter, which has none afterwards."""
    gradients = [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]
    for parameter in adapter.parameters():
        parameter.grad = None
    return gradients


def gradients(family: Family, adapter: Adapter) -> list[Tensor]:
    family.predict(*question(family)).float().square().mean().backward()
    return taken_from(adapter)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


class Card(TorchDispatchMode):
    """Refuses to compute with weights that wait, and notes the blocks whose weights are copied.

    The device is the processor. It stands in for a card by this rule alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._offloaded = offload._OFFLOADED[model]
        self._waiting = {
            weight.waiting.untyped_storage().data_ptr(): block
            for block, weights in self._offloaded.weights.items()
            for weight in weights
        }
        self.copied: list[nn.Module] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as in torch
        touched = [
            self._waiting[key]
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage().data_ptr()) in self._waiting
        ]
        if func is torch.ops.aten.copy_.default:
            if touched and touched[0] not in self.copied[-1:]:
                self.copied.append(touched[0])
        else:
            assert not touched or func in VIEWS, f"{func} with weights that wait"
        return func(*args, **(kwargs or {}))
