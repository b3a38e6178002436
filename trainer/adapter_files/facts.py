"""Facts that loading rules depend on: the layers of an adapter file, and how they fit the model it is for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainer.adapter_files import summary
from trainer.adapter_files.safetensors_reader import Container
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names
from trainer.base_models.detect import FamilyName
from trainer.base_models.layer_names import Module, Shape

PEFT_SETTINGS = "lora_adapter_metadata"


@dataclass(frozen=True)
class Facts:
    """An adapter file and the model it is for, whose weight shapes are `known`."""

    file: Container
    layers: list[Layer]
    strange: list[str]
    family: FamilyName
    model: str
    known: Mapping[str, Shape]

    @cached_property
    def peft(self) -> bool:
        """Tell whether the file is in PEFT's format."""
        return any(layer.module.naming == "dotted" for layer in self.layers)

    @cached_property
    def told(self) -> dict[str, Any]:
        """PEFT's settings in the metadata; {} if there are none or they are damaged."""
        try:
            told = json.loads(self.file.metadata.get(PEFT_SETTINGS, "{}"))
        except (ValueError, RecursionError):
            return {}
        return told if isinstance(told, dict) else {}

    @cached_property
    def without_alpha(self) -> list[str]:
        """Layers in kohya's form that lack their alpha."""
        return [one.module.name for one in self.layers if one.module.naming != "dotted" and "alpha" not in one.parts]

    @cached_property
    def halves(self) -> list[str]:
        """Layers that lack a part, or whose parts do not fit together."""
        return [
            one.module.name for one in self.layers if layer_names.weight_size(summary.shapes(self.file, one)) is None
        ]

    @cached_property
    def misfits(self) -> list[str]:
        """Layers that the model has, in another size."""
        return [one.module.name for one in self.layers
                if self.has(one.module) and layer_names.weight_size(summary.shapes(self.file, one))
                and not summary.fits(self.file, one, self.known)]  # fmt: skip

    @cached_property
    def twice(self) -> list[str]:
        """Layers that are in the file under two names."""
        names: dict[Any, str] = {}
        placed = [(one.module.place, one.module.name) for one in self.layers if one.module.place]
        return [name for place, name in placed if names.setdefault(place, name) != name]

    @cached_property
    def infinite(self) -> list[str]:
        """Tensors with values that are no finite numbers."""
        return [key for key in self.file.entries if not self.file.is_finite(key)]

    @cached_property
    def full_strength(self) -> bool:
        """Tell whether the scale stands in PEFT's settings and is not 1."""
        components = {key.partition(".")[0] for key in self.told}
        return any(
            self.told.get(f"{one}.alpha_pattern") or self.told.get(f"{one}.lora_alpha") != self.told.get(f"{one}.r")
            for one in components
        )

    def has(self, module: Module) -> bool:
        """Tell whether the model has a layer."""
        return module.place is not None and f"{module.place.component}:{module.place.path}" in self.known

    @cached_property
    def dora_by_output(self) -> bool:
        """Tell whether it is a DoRA with a length for each output, not for each input."""
        scales = (summary.shapes(self.file, layer).get("dora_scale", ()) for layer in self.layers)
        return any(shape and shape[0] > 1 for shape in scales)
