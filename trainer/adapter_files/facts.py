"""Facts that loading rules depend on: the layers of an adapter file, and how they fit the model it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from trainer.adapter_files import summary
from trainer.adapter_files.peft_settings import PeftSettings
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names
from trainer.base_models.layer_names import Module, Place, Shape
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import FamilySpec


@dataclass(frozen=True)
class Facts:
    """An adapter file and the model it is for, whose weight shapes are `known`."""

    file: SafetensorsFile
    layers: list[Layer]
    unknown_keys: list[str]
    family: FamilyName
    model: str
    known: Mapping[str, Shape]
    peft_settings: PeftSettings

    @property
    def spec(self) -> FamilySpec:
        """Facts about its family."""
        return FAMILIES[self.family]

    @cached_property
    def peft(self) -> bool:
        """Tell whether the file is in PEFT's format."""
        return any(layer.module.naming == "dotted" for layer in self.layers)

    @cached_property
    def without_alpha(self) -> list[str]:
        """Layers in kohya's format that lack their alpha."""
        kohya = [layer for layer in self.layers if layer.module.naming != "dotted"]
        return [layer.module.name for layer in kohya if "alpha" not in layer.parts]

    @cached_property
    def incomplete(self) -> list[str]:
        """Layers that lack a tensor, or whose tensors do not fit together."""
        return [layer.module.name for layer in self.layers if not self._is_complete(layer)]

    @cached_property
    def misfits(self) -> list[str]:
        """Layers that the model has in another size."""
        complete = [layer for layer in self.layers if self.has(layer.module) and self._is_complete(layer)]
        return [layer.module.name for layer in complete if not summary.fits(self.file, layer, self.known)]

    def _is_complete(self, layer: Layer) -> bool:
        return layer_names.weight_size(summary.shapes(self.file, layer)) is not None

    @cached_property
    def twice(self) -> list[str]:
        """Layers that are in the file under two names."""
        names: dict[Place, str] = {}
        placed = [(layer.module.place, layer.module.name) for layer in self.layers if layer.module.place]
        return [name for place, name in placed if names.setdefault(place, name) != name]

    @cached_property
    def not_finite(self) -> list[str]:
        """Tensors with values that are infinite or NaN."""
        return summary.not_finite(self.file, self.layers, self.unknown_keys)

    def has(self, module: Module) -> bool:
        """Tell whether the model has a layer."""
        return module.place is not None and f"{module.place.component}:{module.place.path}" in self.known

    @property
    def dora_by_output(self) -> bool:
        """Tell whether it is a DoRA with a magnitude for each output."""
        return any(shape[0] > 1 for shape in self._magnitudes)

    @property
    def dora_by_input(self) -> bool:
        """Tell whether it is a DoRA with a magnitude for each input."""
        return any(shape[0] == 1 for shape in self._magnitudes)

    @cached_property
    def _magnitudes(self) -> list[Shape]:
        magnitudes = (summary.shapes(self.file, layer).get("dora_scale") for layer in self.layers)
        return [shape for shape in magnitudes if shape]
