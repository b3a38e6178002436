"""The finished adapter as one file that other programs load, checked before anybody is told that it is there.

Kohya's form: `lora_unet_` + the name of a module (for XL the original one), `lora_te_text_model_...` for the text
encoder (for XL `lora_te1_` and `lora_te2_`), the real alpha in every module, fp16, no other tensors. The key names are
made in `families`; the metadata here. diffusers' own converter is not used: it writes alpha = rank, whatever alpha was.
"""

import hashlib
import json
import struct
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from trainer import __version__, adapter_file, detect, events, files
from trainer.adapter_file import AdapterFile
from trainer.config import TrainConfig, dump
from trainer.errors import UserError
from trainer.families import ADAPTER, Adapter, Family, adapted, base_weight
from trainer.runs import Run

# fp16 keeps 11 bits of a number; a product of two rounded matrices is off by no more than a few such roundings.
TOLERANCE = 5e-3
SMALLEST = 2**-24  # the least that fp16 can tell from zero: an adapter that learned next to nothing is rounded to that
NOT_IN_DIFFUSERS = (
    "diffusers cannot load this kind of adapter, so that the file was compared with the trained adapter only; it is "
    "for ComfyUI, Forge and programs with LyCORIS, and for Try out."
)


def write(family: Family, adapter: Adapter, config: TrainConfig, run: Run, captions: list[str]) -> Path:
    """Write the adapter file of a run, read it back, load it with diffusers, and compare its effect.

    The adapter is taken off the base model for that; its tensors stay as they are.

    Raises:
        UserError: the adapter is not finite; no file is written.
        RuntimeError: the file does not do what the trained adapter did (a bug of ours); the file is removed.
    """
    tensors = adapter.tensors(torch.float16)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError("The trained adapter is not finite in fp16.", "Lower the learning rate and train again.")
    run.report(events.Phase(name="Checking the file", done=0, total=1))
    path = run.export
    files.write(path, with_hashes(save(tensors, metadata(family, config, run, captions, len(captions)))))
    try:
        file = adapter_file.read(path)
        compare(file, adapter)
        adapter.detach()
        if adapter_file.readable_by_diffusers(file):
            load_with_diffusers(family, file)
        else:
            run.report(events.Warned(message=NOT_IN_DIFFUSERS))
    except Exception:
        path.unlink(missing_ok=True)
        raise
    return path


def compare(file: AdapterFile, adapter: Adapter) -> None:
    """Check that each module's change of the weights in the file equals the trained one's within fp16 rounding.

    Raises:
        RuntimeError: it does not.
    """
    if file.modules.keys() != adapter.layers.keys():
        raise RuntimeError("the file has other modules than the adapter")
    for name, layer in adapter.layers.items():
        trained = layer.delta()
        weight = base_weight(layer)
        # A DoRA module's rows are given a length anew, so that they are rounded as a whole weight is.
        size = trained.norm() + (weight.norm() if "dora_scale" in file.modules[name].parts else 0)
        error = (file.modules[name].delta(weight) - trained).norm()
        if error > TOLERANCE * size + SMALLEST * trained.numel() ** 0.5:
            raise RuntimeError(f"the file's {name} differs from the trained adapter by {float(error):.3g}")


def load_with_diffusers(family: Family, file: AdapterFile) -> None:
    """Load the file the way that any diffusers program does, and check that every tensor arrived.

    Raises:
        RuntimeError: a module is missing or has other values.
    """
    pipeline = family.pipeline()
    pipeline.load_lora_weights(dict(file.tensors), adapter_name=ADAPTER)
    try:
        arrived = adapted(family)
        for name, known in file.modules.items():
            if name not in arrived:
                raise RuntimeError(f"diffusers did not load {name}")
            error = (arrived[name].delta() - known.delta()).norm()
            if error > TOLERANCE * known.delta().norm() + 1e-7:
                raise RuntimeError(f"diffusers loads {name} with other values")
    finally:
        pipeline.unload_lora_weights()


def metadata(family: Family, config: TrainConfig, run: Run, captions: list[str], pictures: int) -> dict[str, str]:
    """The header's text values that other programs read; no path, no name of a person or machine."""
    now = datetime.now(UTC)
    begun = [event.time for event in events.read(run.log)[0] if event.kind == "started"]
    tags = Counter(tag for caption in captions for tag in (part.strip() for part in caption.split(",")) if tag)
    dataset_name = f"1_{files.safe_name(Path(config.dataset).name, 'pictures')}"
    size = str(config.training.resolution)
    network, arguments = config.adapter.network
    values: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": config.name,
        "modelspec.date": now.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": "epsilon" if family.objective == "epsilon" else "v",
        "modelspec.trigger_phrase": config.trigger,
        "ss_base_model_version": family.base_version,
        "ss_v2": family.base_version.startswith("sd_v2"),
        "ss_network_module": network,
        "ss_network_dim": config.adapter.rank,
        "ss_network_alpha": config.adapter.file_alpha,
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": config.name,
        "ss_sd_model_name": Path(config.model.base).name,
        "ss_resolution": f"({size}, {size})",
        "ss_num_train_images": pictures,
        "ss_steps": config.training.steps,
        "ss_max_train_steps": config.training.steps,
        "ss_seed": config.seed,
        "ss_learning_rate": config.optimizer.learning_rate,
        "ss_unet_lr": config.optimizer.learning_rate,
        "ss_text_encoder_lr": config.optimizer.learning_rate * config.training.text_encoder_factor
        if config.training.text_encoder
        else "None",
        "ss_optimizer": config.optimizer.kind,
        "ss_lr_scheduler": config.schedule.kind,
        "ss_min_snr_gamma": config.objective.min_snr_gamma if config.objective.weighting == "min-snr" else "None",
        "ss_noise_offset": config.objective.noise_offset or "None",
        "ss_mixed_precision": "no" if config.training.precision == "fp32" else config.training.precision,
        "ss_tag_frequency": json.dumps({dataset_name: dict(tags)}),
        "ss_dataset_dirs": json.dumps({dataset_name: {"n_repeats": 1, "img_count": pictures}}),
        "ss_training_started_at": (begun[0] if begun else now).timestamp(),
        "ss_training_finished_at": now.timestamp(),
        "limner.version": __version__,
        "limner.config": dump(without_paths(config)),
    }
    return {key: str(value) for key, value in values.items() if value != ""}


def without_paths(config: TrainConfig) -> TrainConfig:
    """The settings as they may be published: of each path only its last part."""
    name = config.model.base if detect.is_hub_name(config.model.base) else Path(config.model.base).name
    base = config.model.model_copy(update={"base": name})
    prior = config.prior.model_copy(update={"dataset": Path(config.prior.dataset).name})
    return config.model_copy(update={"model": base, "dataset": Path(config.dataset).name, "prior": prior})


def with_hashes(data: bytes) -> bytes:
    """A safetensors file with the two hashes added that programs know it by; they do not depend on the metadata.

    `sshs_model_hash` is the SHA-256 of all bytes after the header; `sshs_legacy_hash` the first 8 digits of the
    SHA-256 of 64 KiB at offset 1 MiB.
    """
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header["__metadata__"] |= {
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + body
