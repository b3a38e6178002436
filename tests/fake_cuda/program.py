"""Print the peak memory of what a run does on a card, as JSON: `python -m tests.fake_cuda.program sdxl off all`.

The base model is named as its family and is built from its config; then come ways of gradient checkpointing, of each of
which the gradients of one image are computed, beside the optimizer's state. `text-encoders` trains those too.
"""

# ruff: noqa: I001 - the card must be there before torch is
from tests.fake_cuda.card import CARD, inserted

import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, cast, get_args

import diffusers
import torch
import transformers
from torch import Tensor, nn

from trainer import config, families
from trainer.base_models import CONFIGS
from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config import TrainConfig
from trainer.families import Family, gradient_checkpointing
from trainer.families.family import _model_class
from trainer.training import optimizer_step
from trainer.training.batches import Batch

TEXT_ENCODERS = "text-encoders"
Measured = Callable[[str], AbstractContextManager[None]]
WAYS: tuple[gradient_checkpointing.Recomputed, ...] = get_args(gradient_checkpointing.Recomputed)


class Accelerator:
    """The one card, in mixed precision; accelerate would find none."""

    device, num_processes, process_index = CARD, 1, 0

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def main(base: FamilyName, parts: set[str]) -> dict[str, int]:
    """Return the bytes that each part takes at its peak, by name."""
    peaks: dict[str, int] = {}
    gc.disable()  # a fifth of the time, and peaks are the same each time

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        gc.collect()
        meter.peak = meter.now
        yield
        peaks[name] = meter.peak

    with inserted() as meter:
        family = build(base)
        text_encoder = TEXT_ENCODERS in parts
        settings = settings_of(base, text_encoder=text_encoder)
        with families.on_device(family, *family.text_encoders.values()), torch.no_grad():
            conditioning = family.encode_prompts(["a person"])
        families.place(family, text_encoder=text_encoder)
        train(family, settings, conditioning, [way for way in WAYS if way in parts], measured)
    return peaks


def train(
    family: Family,
    settings: TrainConfig,
    conditioning: dict[str, Tensor],
    ways: Sequence[gradient_checkpointing.Recomputed],
    measured: Measured,
) -> None:
    """Measure the gradients of one image, beside the state of the optimizer, in some ways of gradient checkpointing."""
    adapter = families.attach(family, settings.adapter, text_encoder=settings.training.text_encoder, seed=0)
    optimizer = settings.optimizer.build(adapter.groups(1.0))
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state is there from now on
    optimizer.zero_grad()
    side = settings.training.resolution // 8
    latents, sizes = torch.zeros(1, 4, side, side, device=CARD), torch.zeros(1, 6, device=CARD)
    cached = None if settings.training.text_encoder else {**conditioning, "sizes": sizes}
    batch = Batch(latents, latents.clone(), cached, ("a person",), 1, sizes=sizes)
    for way in ways:
        gradient_checkpointing.recompute(family, way)
        with measured(way):
            optimizer_step.compute_gradients(
                cast(Any, Accelerator()),
                family,
                adapter,
                cast(Any, SimpleNamespace(at=lambda *_: batch)),
                settings,
                [(0, 0)],
            )
        optimizer.zero_grad()


def build(base: FamilyName) -> Family:
    """Build a base model in main memory, in bf16 and without values."""
    folder, spec = CONFIGS / base, FAMILIES[base]
    components: dict[str, Any] = dict(spec.pipeline_options)
    for name, origin in json.loads((folder / "model_index.json").read_text()).items():
        if name.startswith("_") or not isinstance(origin, list) or name in components:
            continue
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}[origin[0]], origin[1])
        if name.startswith("tokenizer"):
            component = kind.from_pretrained(CONFIGS / "clip", local_files_only=True)
        elif name.startswith("text_encoder"):
            component = kind(transformers.CLIPTextConfig.from_pretrained(folder / name))
        else:
            component = kind.from_config(kind.load_config(folder / name))
        if isinstance(component, nn.Module):
            component.to(torch.float32 if name == "vae" else torch.bfloat16).requires_grad_(False).eval()
        components[name] = component
    pipeline = getattr(diffusers, spec.pipeline)(**components)
    single_file = {} if base == "sdxl" else {"single_file": False}
    model: Any = _model_class(spec)
    return cast(Family, model(pipeline, Base(base, "epsilon", False, ""), CARD, **single_file))


def settings_of(base: FamilyName, *, text_encoder: bool) -> TrainConfig:
    """Return the settings of a run with one image at a time at the base model's resolution."""
    resolution = FAMILIES[base].variants["epsilon"].resolution
    return config.build(
        {
            "name": "x",
            "dataset": "x",
            "model": {"base": "x", "family": base},
            "adapter": {"rank": 16},
            "training": {
                "resolution": resolution,
                "batch_size": 1,
                "micro_batches": 1,
                "gradient_accumulation": 1,
                "text_encoder": text_encoder,
            },
            "preservation": {"share": 0},
        }
    )


if __name__ == "__main__":
    json.dump(main(cast(FamilyName, sys.argv[1]), set(sys.argv[2:])), sys.stdout)
