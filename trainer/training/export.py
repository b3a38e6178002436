"""The finished adapter as files for other programs, checked before anybody is told that they are there.

How the files are written is in `forms`; what stands in their metadata about the run is made here. Each file is read
back, loaded as other programs do, and compared with the trained adapter; then `verify` applies the rules of the rest.
"""

import base64
import io
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from trainer import __version__, paths, storage
from trainer.adapter_files import compatibility, reader, summary, writer
from trainer.adapter_files.reader import AdapterFile
from trainer.adapter_files.writer import Precision
from trainer.base_models import detect, layer_names
from trainer.base_models.layer_names import Shape
from trainer.config import TrainConfig, dump
from trainer.errors import UserError
from trainer.families import ADAPTER, Adapter, Family, adapted, base_weight, named
from trainer.i18n import say
from trainer.runs import Run, events

# fp16 keeps 11 bits of a number; a product of two rounded matrices is off by no more than a few such roundings. bf16
# keeps 8.
TOLERANCE: dict[Precision, float] = {"fp16": 5e-3, "bf16": 4e-2, "fp32": 1e-4}
SMALLEST = 2**-24  # the least that fp16 can tell from zero: an adapter that learned next to nothing is rounded to that
COVER_SIDE = 256
NOT_IN_DIFFUSERS = say(
    "diffusers cannot load this kind of adapter in kohya's form, so that the file was compared with the trained "
    "adapter only; it is for ComfyUI, Forge and programs with LyCORIS, and for Try out."
)


def write(family: Family, adapter: Adapter, config: TrainConfig, run: Run, captions: list[str]) -> Path:
    """Write the adapter files of a run, read them back, load them with diffusers, and compare their effect.

    The adapter is taken off the base model for that; its tensors stay as they are.

    Raises:
        UserError: the adapter is not finite; no file is written.
        RuntimeError: a file does not do what the trained adapter did (a bug of ours); it is removed.
    """
    settings, precision = config.export, config.export.precision
    tensors = adapter.tensors()
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError("The trained adapter is not finite.", "Lower the learning rate and train again.")
    trained = reader.of_tensors(tensors, run.export.name)
    told = metadata(family, config, run, captions, len(captions))
    if settings.cover and (picture := cover(run)):
        told |= {summary.COVER: json.dumps([picture]), "modelspec.thumbnail": f"data:image/jpeg;base64,{picture}"}
    known, tolerance, errors = shapes(family), TOLERANCE[precision], dict[Path, float]()
    run.report(events.Phase(name=say("Checking the file"), done=0, total=1))
    written: list[Path] = []
    try:
        for form in ("kohya", "peft") if settings.peft else ("kohya",):
            path = run.export if form == "kohya" else run.folder / "peft" / writer.PEFT_NAME
            path.parent.mkdir(exist_ok=True)
            written.append(path)
            data = writer.write(
                trained.modules, told, form=form, precision=precision, strip=settings.strip,
                family=family.found.family,
            )  # fmt: skip
            storage.write(path, data)
            errors[path] = compare(reader.read(path), adapter, tolerance)
        adapter.detach()
        for path in written:
            file = reader.read(path)
            if path != run.export or reader.readable_by_diffusers(file):
                load_with_diffusers(family, path, tolerance)
            else:
                run.report(events.Warned(message=NOT_IN_DIFFUSERS))
            note = say(
                "Its effect is that of the trained adapter to within {error:.2%} (rounding to {precision}).",
                error=errors[path], precision=precision,
            )  # fmt: skip
            run.report(verified(compatibility.check(path, known), path, run, note))
    except Exception:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return run.export


def verified(report: compatibility.Report, path: Path, run: Run, note: str) -> events.Verified:
    """A report, and what was measured, as an event of a run."""
    verdicts = tuple((one.program, one.loads, one.words) for one in report.verdicts)
    return events.Verified(
        file=path.relative_to(run.folder).as_posix(),
        verdicts=verdicts,
        problems=report.problems,
        notes=(*report.notes, note),
    )


def shapes(family: Family) -> dict[str, Shape]:
    """Weight shapes of the live base model by `component:path`."""
    found: dict[str, Shape] = {}
    for name, _, _, module in named(family):
        base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if place := layer_names.read(name).place:
            # Weights in fewer bits are packed, so that their own shape is another one.
            linear = isinstance(base, nn.Linear)
            shape = (base.out_features, base.in_features) if linear else tuple(base.weight.shape)
            found[f"{place.component}:{place.path}"] = shape
    return found


def compare(file: AdapterFile, adapter: Adapter, tolerance: float = TOLERANCE["fp16"]) -> float:
    """Check that each module's change of the weights in the file equals the trained one's within its rounding.

    Returns:
        The difference relative to the change, in the norm of all modules together.

    Raises:
        RuntimeError: it is more than rounding.
    """
    if file.modules.keys() != adapter.layers.keys():
        raise RuntimeError("the file has other modules than the adapter")
    whole, lost = 0.0, 0.0
    for name, layer in adapter.layers.items():
        trained = layer.delta()
        weight = base_weight(layer)
        # A DoRA module's rows are given a length anew, so that they are rounded as a whole weight is.
        size = float(trained.norm() + (weight.norm() if "dora_scale" in file.modules[name].parts else 0))
        error = float((file.modules[name].delta(weight) - trained).norm())
        if error > tolerance * size + SMALLEST * trained.numel() ** 0.5:
            raise RuntimeError(f"the file's {name} differs from the trained adapter by {error:.3g}")
        whole, lost = whole + float(trained.norm()) ** 2, lost + error**2
    return (lost / whole) ** 0.5 if whole else 0.0


def load_with_diffusers(family: Family, path: Path, tolerance: float) -> None:
    """Load a file the way that any diffusers program does, and check that every module arrived.

    Raises:
        RuntimeError: a module is missing or has other values.
    """
    file, pipeline = reader.read(path), family.pipeline()
    if next(family.denoiser.parameters()).dtype != torch.float32:  # diffusers rounds an adapter as the base is
        tolerance = max(tolerance, TOLERANCE["bf16"])
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
    try:
        arrived = adapted(family)
        for name, known in file.modules.items():
            if name not in arrived:
                raise RuntimeError(f"diffusers did not load {name}")
            weight = base_weight(arrived[name]) if "dora_scale" in known.parts else None
            meant = known.delta(weight)
            size = meant.norm() + (0 if weight is None else weight.norm())
            if (arrived[name].delta() - meant).norm() > tolerance * size + SMALLEST * meant.numel() ** 0.5:
                raise RuntimeError(f"diffusers loads {name} with other values")
    finally:
        pipeline.unload_lora_weights()


def cover(run: Run) -> str:
    """The newest preview of a run, small, as base64 text of a JPEG without anything else in it; "" if there is none."""
    previews = sorted((run.folder / "previews").glob("*_0.png"))
    if not previews:
        return ""
    with Image.open(previews[-1]) as picture:
        small = picture.convert("RGB")
    small.thumbnail((COVER_SIDE, COVER_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def metadata(family: Family, config: TrainConfig, run: Run, captions: list[str], pictures: int) -> dict[str, str]:
    """The header's text values that other programs read; no path, no name of a person or machine."""
    now = datetime.now(UTC)
    begun = [event.time for event in events.read(run.log)[0] if event.kind == "started"]
    tags = Counter(tag for caption in captions for tag in (part.strip() for part in caption.split(",")) if tag)
    dataset_name = f"1_{paths.safe_name(Path(config.dataset).name, 'pictures')}"
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
