"""The file of the winner: the weights of its checkpoint, with the strength in the metadata. Without torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from limner_extensions.choosing.knockout import Candidate
from trainer import paths, runs, storage
from trainer.adapter_files import safetensors_reader
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.runs import Run
from ui.state import adapter_choices

HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # of another file


def save(run: Run, winner: Candidate) -> Path:
    """Write the winner beside the other files of the page, in the precision of the run's files; returns its path.

    SwarmUI takes the strength from `modelspec.lora_default_weight` (`T2IModelHandler.cs`), and programs that show
    `modelspec.usage_hint` (modelspec 1.0.1) tell people.

    Raises:
        UserError: the checkpoint is gone or damaged.
    """
    config, file = run.config(), safetensors_reader.read(adapter_choices.find(winner.key))
    step = winner.key.partition("@")[2] or runs.look(run).state.exported
    name = paths.safe_name(f"{config.name}-step{step}", "adapter")
    metadata = {key: text for key, text in file.metadata.items() if key not in HASHES}
    metadata |= {
        "modelspec.title": name,
        "modelspec.usage_hint": f"Best at strength {winner.strength:g}.",
        "modelspec.lora_default_weight": f"{winner.strength:g}",
        "ss_output_name": name,
    }
    folder = paths.adapters()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{name}.new"
    storage.write_chunks(new, chunks(file, metadata, is_half=config.export.precision == "fp16"))
    return adapter_choices.keep(new)


def chunks(file: SafetensorsFile, metadata: Mapping[str, str], *, is_half: bool) -> Iterator[bytes]:
    """Yield a file with the same tensors and other metadata; numbers of 32 bits take 16 if `is_half`.

    Raises:
        UserError: the file is another one by now.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    ordered, end = sorted(file.entries.items(), key=lambda item: item[1].start), 0
    halved = {key for key, entry in ordered if is_half and entry.dtype == "F32"}
    for key, entry in ordered:
        dtype, size = entry.dtype, entry.size
        if key in halved:
            dtype, size = "F16", size // 2
        header[key] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [end, end + size]}
        end += size
    yield safetensors_reader.packed(header)
    for key, _entry in ordered:
        data = file.data(key)
        if key in halved:
            data = np.frombuffer(data, "<f4").astype("<f2").tobytes()
        yield data
