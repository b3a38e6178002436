"""Export the finished adapter as files for other programs, and verify them.

`adapter_files.writer` writes the files; their metadata about the run is built here. Each file is read back, loaded as
diffusers does, and compared with the trained adapter; then `compatibility` applies the rules of the other programs.
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
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.spec import Shape
from trainer.config import TrainConfig, dump, without_paths
from trainer.errors import UserError
from trainer.families import ADAPTER, Adapter, Family, adapted, base_weight, named
from trainer.i18n import _
from trainer.runs import Run, events

# fp16 keeps 11 bits of a number, bf16 8; a product of two rounded matrices is off by at most a few such roundings.
TOLERANCE: dict[Precision, float] = {"fp16": 5e-3, "bf16": 4e-2, "fp32": 1e-4}
SMALLEST = 2**-24  # the least that fp16 can tell from zero; an adapter that learned next to nothing is rounded to it
EPSILON = 2**-23  # a DoRA's change is the difference of two weights, in fp32
COVER_SIDE = 256
NOT_IN_DIFFUSERS = _(
    "diffusers does not apply this kind of adapter from kohya's format, so that the file was only compared with the "
    "trained adapter; the Download tab says which programs load it."
)
NOT_IN_PEFT = _(
    "The second file, for diffusers, is not written: PEFT's format holds a DoRA's magnitudes for each output, and this "
    "adapter has one for each input, as other programs read them. Train a LoRA for diffusers."
)


def write(
    family: Family, adapter: Adapter, config: TrainConfig, run: Run, captions: list[str], step: int
) -> dict[str, str]:
    """Write the adapter of a step to the files of a run, read them back, load them with diffusers, and compare effects.

    The adapter is detached from the base model for that; its tensors stay as they are.

    Returns:
        The SHA-256 of each file, by its path in the run folder.

    Raises:
        UserError: the adapter is not finite; no file is written.
        RuntimeError: a file does not have the effect of the trained adapter (a bug of ours); it is removed.
    """
    settings, precision = config.export, config.export.precision
    tensors = adapter.tensors()
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError("The trained adapter is not finite.", "Lower the learning rate and train again.")
    facts = metadata(family, config, run, captions, step)
    trained = reader.of_tensors(tensors, run.export.name, facts)
    facts |= _cover_facts(run, step) if settings.cover else {}
    known, tolerance, errors = shapes(family), TOLERANCE[precision], dict[Path, float]()
    run.report(events.Phase(name=_("Checking the file"), done=0, total=1))
    written: dict[Path, str] = {}
    as_peft = settings.peft and "DoRA" not in trained.kinds
    if settings.peft and not as_peft:
        run.warn(NOT_IN_PEFT)
    try:
        for form in ("kohya", "peft") if as_peft else ("kohya",):
            path = run.export if form == "kohya" else run.folder / "peft" / writer.PEFT_NAME
            path.parent.mkdir(exist_ok=True)
            written[path] = ""
            data = writer.write(
                trained.modules,
                facts,
                form=form,
                precision=precision,
                strip=settings.strip,
                family=family.base.family,
            )
            written[path] = storage.write(path, data)
            errors[path] = compare(reader.read(path), adapter, tolerance)
        adapter.detach()
        for path in written:
            report = compatibility.check(path, known)
            if path != run.export or reader.readable_by_diffusers(reader.read(path)):
                load_with_diffusers(family, path, tolerance)
            elif not any(verdict.loads for verdict in report.verdicts if verdict.program == "diffusers"):
                run.warn(NOT_IN_DIFFUSERS)
            note = _(
                "Its effect equals that of the trained adapter to within {error:.2%} (rounding to {precision}).",
                error=errors[path],
                precision=precision,
            )
            run.report(verified(report, path, run, note))
    except Exception:
        for path in written:
            storage.remove(path)
        raise
    return {path.relative_to(run.folder).as_posix(): checksum for path, checksum in written.items()}


def _cover_facts(run: Run, step: int) -> dict[str, str]:
    image = cover(run, step)
    if not image:
        return {}
    return {summary.COVER: json.dumps([image]), "modelspec.thumbnail": f"data:image/jpeg;base64,{image}"}


def verified(report: compatibility.Report, path: Path, run: Run, note: str) -> events.Verified:
    """Return a report, with a note on the measured error, as an event of a run."""
    verdicts = tuple((verdict.program, verdict.loads, verdict.words) for verdict in report.verdicts)
    return events.Verified(
        file=path.relative_to(run.folder).as_posix(),
        verdicts=verdicts,
        problems=report.problems,
        notes=(*report.notes, note),
    )


def shapes(family: Family) -> dict[str, Shape]:
    """Return the weight shapes of the live base model by `component:path`, also of what its original code joins."""
    by_place: dict[str, Shape] = {}
    for name, _prefix, _path, module in named(family):
        base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if place := layer_names.read(name).place:
            shape = tuple(base.weight.shape)
            if isinstance(base, nn.Linear):  # its weight is packed if it is quantized
                shape = base.out_features, base.in_features
            by_place[f"{place.component}:{place.path}"] = shape
    return layer_shapes.with_joined(by_place, family.base.family)


def compare(file: AdapterFile, adapter: Adapter, tolerance: float = TOLERANCE["fp16"]) -> float:
    """Check that each module's change of the weights in the file equals the trained one within rounding.

    Returns:
        The difference relative to the change, in the norm of all modules together.

    Raises:
        RuntimeError: it is more than rounding.
    """
    if file.modules.keys() != adapter.layers.keys():
        raise RuntimeError("the file does not have the modules of the adapter")
    whole, lost = 0.0, 0.0
    for name, layer in adapter.layers.items():
        trained = layer.delta()
        weight = base_weight(layer)
        rounding = SMALLEST * trained.numel() ** 0.5
        if "dora_scale" in file.modules[name].parts:
            rounding += EPSILON * float(weight.norm())
        error = float((file.modules[name].delta(weight) - trained).norm())
        if error > tolerance * float(trained.norm()) + rounding:
            raise RuntimeError(f"the file's {name} differs from the trained adapter by {error:.3g}")
        whole, lost = whole + float(trained.norm()) ** 2, lost + error**2
    return (lost / whole) ** 0.5 if whole else 0.0


def load_with_diffusers(family: Family, path: Path, tolerance: float) -> None:
    """Load a file as any diffusers program does, and check every module.

    Raises:
        RuntimeError: a module is missing or has different values.
    """
    file, pipeline = reader.read(path), family.pipeline()
    if next(family.denoiser.parameters()).dtype != torch.float32:  # diffusers rounds an adapter to the base's type
        tolerance = max(tolerance, TOLERANCE["bf16"])
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
    try:
        loaded = adapted(family)
        for name, module in file.modules.items():
            if name not in loaded:
                raise RuntimeError(f"diffusers did not load {name}")
            expected = module.delta()
            error = (loaded[name].delta() - expected).norm()
            if error > tolerance * expected.norm() + SMALLEST * expected.numel() ** 0.5:
                raise RuntimeError(f"diffusers loads {name} with different values")
    finally:
        pipeline.unload_lora_weights()


def cover(run: Run, step: int) -> str:
    """Return the newest preview up to a step as base64 text of a small JPEG without metadata; "" if there is none."""
    files = sorted((run.folder / "previews").glob("*_0.png"))
    previews = [file for file in files if int(file.name.partition("_")[0]) <= step]
    if not previews:
        return ""
    with Image.open(previews[-1]) as preview:
        image = preview.convert("RGB")
    image.thumbnail((COVER_SIDE, COVER_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def metadata(family: Family, config: TrainConfig, run: Run, captions: list[str], step: int) -> dict[str, str]:
    """Return the metadata of a file, which other programs read; no path, no name of a user or machine."""
    now = datetime.now(UTC)
    starts = [event.time for event in events.read(run.log)[0] if event.kind == "started"]
    started = starts[0] if starts else now
    tags = Counter(tag for caption in captions for tag in map(str.strip, caption.split(",")) if tag)
    dataset_name = f"1_{paths.safe_name(Path(config.dataset).name, 'pictures')}"
    size = str(config.training.resolution)
    network, arguments = config.adapter.network
    rate, text_rate = config.optimizer.learning_rate, "None"
    if config.training.text_encoder:
        text_rate = str(rate * config.training.text_encoder_lr_factor)
    min_snr = config.objective.min_snr_gamma if config.objective.weighting == "min-snr" else "None"
    values: dict[str, Any] = {
        **writer.of_family(family.base.family, family.noise.prediction_type, family.base.size),
        "modelspec.title": config.name,
        "modelspec.date": now.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.trigger_phrase": ", ".join(config.triggers),
        "ss_network_module": network,
        "ss_network_dim": config.adapter.rank,
        "ss_network_alpha": config.adapter.file_alpha,
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": config.name,
        "ss_sd_model_name": Path(config.model.base).name,
        "ss_vae_name": Path(config.model.vae).name,
        "ss_resolution": f"({size}, {size})",
        "ss_num_train_images": len(captions),
        "ss_steps": step,
        "ss_max_train_steps": config.training.steps,
        "ss_seed": config.seed,
        "ss_zero_terminal_snr": family.base.zero_snr and family.noise.prediction_type == "v_prediction",
        "ss_clip_skip": config.model.clip_skip if family.spec.clip_skip else "None",
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": text_rate,
        "ss_optimizer": config.optimizer.kind,
        "ss_lr_scheduler": config.schedule.kind,
        "ss_min_snr_gamma": min_snr,
        "ss_noise_offset": config.objective.noise_offset or "None",
        "ss_mixed_precision": "no" if config.training.precision == "fp32" else config.training.precision,
        "ss_tag_frequency": json.dumps({dataset_name: dict(tags)}),
        "ss_dataset_dirs": json.dumps({dataset_name: {"n_repeats": 1, "img_count": len(captions)}}),
        "ss_training_started_at": started.timestamp(),
        "ss_training_finished_at": now.timestamp(),
        "limner.version": __version__,
        "limner.config": dump(without_paths(config)),
    }
    return {key: str(value) for key, value in values.items() if value != ""}
