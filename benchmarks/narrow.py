"""Base models with the blocks and names of the real ones and narrow layers, the same in every process.

The widths of text embeddings are real, as programs tell the families by them.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from trainer.base_models import CONFIGS, layer_names, layer_shapes
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import FamilyName
from trainer.base_models.spec import Shape

WIDTHS = (32, 64, 64, 64)
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
WITHOUT_BIAS = ("to_q", "to_k", "to_v", "text_projection")


@dataclass(frozen=True)
class Base:
    """A narrow base model: shapes of its layers by our names, and values drawn from these names."""

    family: FamilyName
    configs: dict[str, dict[str, Any]]
    shapes: dict[str, Shape]

    @classmethod
    def make(cls, family: FamilyName) -> "Base":
        configs = {}
        for folder in sorted((CONFIGS / family).glob("*/config.json")):
            config = json.loads(folder.read_text(encoding="utf-8"))
            if folder.parent.name == "unet":
                blocks = len(config["block_out_channels"])
                heads = config["attention_head_dim"]
                config |= {"block_out_channels": list(WIDTHS[:blocks]), "sample_size": 8,
                           "attention_head_dim": [2] * blocks if isinstance(heads, list) else 2}  # fmt: skip
            elif folder.parent.name.startswith("text_encoder"):
                config |= TEXT
                if config["architectures"] == ["CLIPTextModelWithProjection"]:
                    config["projection_dim"] = 16
            configs[folder.parent.name] = config
        shapes = {f"unet:{path}": shape for path, shape in layer_shapes.unet(configs["unet"]).items()}
        for component in configs:
            if component.startswith("text_encoder"):
                layers = layer_shapes.text_encoder(configs[component])
                shapes |= {f"{component}:{path}": shape for path, shape in layers.items()}
        named = {layer_names.kohya(Place(*key.split(":", 1)), family): shape for key, shape in shapes.items()}
        return cls(family, configs, named)

    @property
    def known(self) -> dict[str, Shape]:
        """Shapes by `component:path`."""
        places = {layer_names.read(name).place: shape for name, shape in self.shapes.items()}
        return {f"{place.component}:{place.path}": shape for place, shape in places.items() if place}

    def parts(self, name: str) -> tuple[str, ...]:
        return ("weight",) if name.endswith(WITHOUT_BIAS) else ("weight", "bias")

    def tensor(self, name: str, part: str) -> Tensor:
        """A weight or bias, the same in every process."""
        shape = self.shapes[name] if part == "weight" else self.shapes[name][:1]
        rng = torch.Generator().manual_seed(sum(map(ord, f"{name}.{part}")))
        return torch.randn(shape, generator=rng) / math.sqrt(math.prod(shape[1:]) or 1)

    def path_of(self, name: str) -> tuple[str, str]:
        """Component of a layer and its path there, with the text encoders' first level as in published models."""
        place = layer_names.read(name).place
        assert place
        component, _, path = layer_names.peft(place).partition(".")
        return component, path

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """A module for each layer, with its values."""
        return {name: self._module(name) for name in self.shapes}

    def _module(self, name: str) -> nn.Module:
        shape, bias = self.shapes[name], len(self.parts(name)) == 2
        module: nn.Module
        if len(shape) == 4:
            module = nn.Conv2d(shape[1], shape[0], shape[2:], padding=shape[2] // 2, bias=bias)
        elif len(shape) == 2:
            module = nn.Linear(shape[1], shape[0], bias=bias)
        else:
            module = nn.LayerNorm(shape)
        for part in self.parts(name):
            setattr(module, part, nn.Parameter(self.tensor(name, part), requires_grad=False))
        return module

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers is untyped
        """A pipeline of diffusers with models of these configs; only their names and shapes matter."""
        import diffusers
        import transformers

        parts: dict[str, Any] = {}
        for component, config in self.configs.items():
            if component == "unet":
                parts[component] = diffusers.UNet2DConditionModel.from_config(config)
            elif component.startswith("text_encoder"):
                with_projection = config["architectures"] == ["CLIPTextModelWithProjection"]
                kind = transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel
                parts[component] = kind(transformers.CLIPTextConfig(**config))
        scheduler = diffusers.DDIMScheduler()
        if self.family == "sdxl":
            return diffusers.StableDiffusionXLPipeline(
                vae=None, tokenizer=None, tokenizer_2=None, scheduler=scheduler, **parts
            )
        return diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(), tokenizer=None, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False, **parts,
        )  # fmt: skip
