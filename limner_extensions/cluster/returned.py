"""Adapter files that a node returns: each has to be one that this run, with its settings, would have written.

A file that only looks like an adapter would be offered for download, and a checkpoint like it would be trained on.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner_extensions.cluster.border import DECIDED, MAX_REASON, clean
from limner_extensions.cluster.node import NodeLostError
from trainer import config, families, storage
from trainer.adapter_files import reader, safetensors_reader, summary
from trainer.adapter_files.reader import AdapterFile
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.base_models import detect
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config import TrainConfig
from trainer.config.adapter import AdapterConfig
from trainer.errors import UserError
from trainer.runs import Run, checkpoints, events

CLOSE = 0.02  # share by which an alpha in half precision may differ
SETTINGS = "limner.config"  # in the metadata
STATE = ".value"  # ending of a trained tensor in the state of an optimizer
Layers = Mapping[str, Mapping[str, Tensor]]


class Returned:
    """Files of a run that come from a node; `there` are its settings as the node has them.

    Each method raises NodeLostError if a file is not one that the run would have written.
    """

    def __init__(self, run: Run, there: TrainConfig) -> None:
        self._run, self._there = run, config.without_paths(there)
        self._outlined: tuple[AdapterConfig, Layers] | None = None

    @cached_property
    def _own_family(self) -> FamilyName:
        model = self._run.config().model
        return detect.look(detect.locate(model.base, model.revision)[0]).family

    def _layers(self) -> Layers:
        """Return the tensors of the run's own adapter by module and ending, which change with the rank alone."""
        settings = self._run.config()
        if not self._outlined or self._outlined[0] != settings.adapter:
            family = families.outline(settings.model)
            layers = families.outlined(family, settings.adapter, text_encoder=settings.training.text_encoder)
            self._outlined = settings.adapter, layers
        return self._outlined[1]

    def check(self, path: Path) -> None:
        """Check an adapter file."""
        try:
            stored = safetensors_reader.read(path)
            _check_values(stored)
            self._check_family(stored)
            file = reader.of_file(stored, path.parent)
        except UserError as error:
            raise NodeLostError(f"the node sent a damaged adapter: {clean(error.message, MAX_REASON)}") from None
        self._check_layers(file)
        self._check_settings(file.metadata)
        if not any(_changes(module.parts) for module in file.modules.values()):
            raise NodeLostError("the node sent an adapter that changes nothing")

    def check_checkpoint(self, folder: Path, step: int) -> None:
        """Check a whole checkpoint, which a run would go on from, before it is one of the run."""
        if damaged := checkpoints.damaged(folder):
            raise NodeLostError(f"the checkpoint that the node sent has another checksum than announced: {damaged[0]}")
        self.check(folder / checkpoints.ADAPTER)
        manifest = checkpoints.read_manifest(folder)
        if manifest.get("step") != step:
            raise NodeLostError("the checkpoint that the node sent is of another step than its name says")
        state = safetensors_reader.read(folder / checkpoints.OPTIMIZER)
        if broken := [key for key in state.entries if key.endswith(STATE) and not state.is_finite(key)]:
            raise NodeLostError(f"the state of the optimizer has values that are not finite: {broken[0][:100]}")
        trained = sorted(math.prod(entry.shape) for key, entry in state.entries.items() if key.endswith(STATE))
        own = [each.numel() for layer in self._layers().values() for end, each in layer.items() if end != "alpha"]
        if trained != sorted(own):
            raise NodeLostError("the state of the optimizer that the node sent is of another shape")

    def check_finished(self, event: events.Finished) -> None:
        """Check that the files of a run that has finished are there, as they were announced; else they are removed."""
        run, announced = self._run, {path: total for path, total in event.sha256.items() if _is_adapter(path)}
        try:
            if event.export != run.export.name or event.export not in announced:
                raise NodeLostError("the node reported the end of the run without its adapter")
            for path, total in announced.items():
                if not (run.folder / path).is_file():
                    raise NodeLostError(f"the node announced {path} and did not send it")
                if storage.sha256(run.folder / path) != total:
                    raise NodeLostError(f"the node sent {path} with another checksum than it announced")
        except NodeLostError:
            for path in {run.export.name, *announced}:
                storage.remove(run.folder / path)
            raise

    def _check_family(self, file: SafetensorsFile) -> None:
        own, theirs = self._own_family, summary.family(file, summary.layers(file)[0])
        if theirs and theirs != own:
            titles = FAMILIES[theirs].title, FAMILIES[own].title
            raise NodeLostError("the node sent an adapter for {}; this run trains one for {}".format(*titles))

    def _check_layers(self, file: AdapterFile) -> None:
        own = self._layers()
        if missing := sorted(own.keys() - file.modules.keys()):
            raise NodeLostError(f"the node sent an adapter without {len(missing)} of {len(own)} layers: {missing[0]}")
        if others := sorted(file.modules.keys() - own.keys()):
            raise NodeLostError(f"the node sent an adapter with layers that this run does not train: {others[0][:100]}")
        for name, module in file.modules.items():
            tensors = dict(own[name])
            alpha = float(tensors.pop("alpha"))
            theirs = {ending: tuple(tensor.shape) for ending, tensor in module.parts.items()}
            if theirs != {ending: tuple(tensor.shape) for ending, tensor in tensors.items()}:
                raise NodeLostError(f"the node sent an adapter of another shape: {name}")
            if module.alpha is not None and not math.isclose(module.alpha, alpha, rel_tol=CLOSE):
                raise NodeLostError(f"the node sent an adapter of another strength: the alpha of {name}")

    def _check_settings(self, metadata: Mapping[str, str]) -> None:
        text = metadata.get(SETTINGS)
        if text is None and self._there.export.strip:
            return
        try:
            theirs = config.build(config.parse(text or "", SETTINGS))
        except UserError:
            raise NodeLostError("the node sent an adapter without the settings of this run") from None
        sent, own = (_fixed(settings) for settings in (theirs, self._there))
        if others := sorted(path for path in sent.keys() | own.keys() if sent.get(path) != own.get(path)):
            raise NodeLostError(f"the node sent an adapter that was trained with other settings: {others[0]}")


def is_checked(path: str) -> bool:
    """Return True for the path of an adapter outside of checkpoints, which are checked as a whole."""
    return _is_adapter(path) and not path.startswith(f"{checkpoints.FOLDER}/")


def _is_adapter(path: str) -> bool:
    return path.endswith(".safetensors") and not path.endswith(checkpoints.OPTIMIZER)


def _check_values(file: SafetensorsFile) -> None:
    """Refuse a file without tensors, or with values that are not finite.

    Raises:
        NodeLostError: it is one.
    """
    if not file.entries:
        raise NodeLostError("the node sent an adapter without any tensor")
    for key in file.entries:
        if not file.is_finite(key):
            values = reader.tensor(file, key)
            kind = "that are no numbers" if bool(values.isnan().any()) else "that are infinite"
            raise NodeLostError(f"the node sent an adapter with values {kind}: {key[:100]}")


def _changes(parts: Mapping[str, Tensor]) -> bool:
    """Return True if a layer changes anything: none of its factors is zero."""
    return all(bool(tensor.to(torch.float32).any()) for tensor in parts.values())


def _fixed(settings: TrainConfig) -> dict[str, Any]:
    """Return the settings that a worker does not decide, by their paths."""
    values: dict[str, Any] = {}
    for section, inner in settings.model_dump(mode="json").items():
        if isinstance(inner, dict):
            decided = DECIDED.get(section)
            names = inner.keys() - {*decided} if decided else (() if decided == () else inner.keys())
            values |= {f"{section}.{name}": inner[name] for name in names}
        else:
            values[section] = inner
    return values
