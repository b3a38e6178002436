"""Print the peak memory of what a run does on a card, as JSON: `python -m tests.fake_cuda.program 8 sdxl off all`.

The first argument is the size of the card in GB, the second the family or size of the base model, which is built from
its config. Then come ways of gradient checkpointing, and of offloading with all blocks computed twice, of each of which
the gradients of one image are computed, beside the optimizer's state; `text-encoders` trains those too. `captions`,
`encoding` of an image and `preview` are what they say. `side=768` and `images=2` describe the batch.
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
from torch._subclasses.fake_tensor import unset_fake_temporarily

from trainer import config, families
from trainer.base_models import CONFIGS, hub
from trainer.base_models.detect import Base
from trainer.base_models.layer_shapes import MODELS
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.families import Family
from trainer.families.base_model import _model_class
from trainer.families.files import classes, loading
from trainer.families.hardware import gradient_checkpointing
from trainer.training import optimizer_step
from trainer.training.inputs.batches import Batch

TEXT_ENCODERS, LONGEST = "text-encoders", 512  # tokens of a text
Measured = Callable[[str], AbstractContextManager[None]]
WAYS: dict[str, tuple[gradient_checkpointing.Recomputed, gradient_checkpointing.Waiting]] = {
    **{way: (way, "off") for way in get_args(gradient_checkpointing.Recomputed)},
    "offload half": ("all", "half"),
    "offload all": ("all", "all"),
}
# Settings of denoisers by which each kind of layer is there, and few of them.
FEW = {
    "sd15": {
        "layers_per_block": 1,
        "block_out_channels": [320, 640],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "sdxl": {"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 1]},
    "sd3": {"num_layers": 2},
    "flux": {"num_layers": 1, "num_single_layers": 1},
    "chroma": {"num_layers": 1, "num_single_layers": 1},
    "flux2_klein": {"num_layers": 1, "num_single_layers": 1},
    "qwen_image": {"num_layers": 1},
    "krea2": {"num_layers": 1},
    "anima": {"num_layers": 1},
    "z_image": {"n_layers": 1, "n_refiner_layers": 1},
}


class Accelerator:
    """The one card, in mixed precision; accelerate would find none."""

    device, num_processes, process_index = CARD, 1, 0

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def main(size: float, base: str, parts: set[str]) -> dict[str, int]:
    """Return the bytes that each part takes at its peak, by name."""
    peaks: dict[str, int] = {}
    numbers = {name: int(number) for name, equals, number in (part.partition("=") for part in parts) if equals}
    gc.disable()  # a fifth of the time, and peaks are the same each time

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        gc.collect()
        meter.peak = meter.now
        yield
        peaks[name] = meter.peak

    with inserted(int(size * 2**30)) as meter:
        family = build(base, **(FEW[base] if parts == {"captions"} else {}))  # which do not need the denoiser
        text_encoder = TEXT_ENCODERS in parts
        settings = settings_of(base, text_encoder=text_encoder, share=0.0, **numbers)
        side = settings.training.resolution
        with families.on_device(family, *family.prompt_encoders().values()), torch.no_grad(), measured("captions"):
            conditioning = family.encode_prompts(["a person"])
        if families.LENGTHS in conditioning:
            text = conditioning["text"]
            conditioning["text"] = text.new_zeros(1, LONGEST, *text.shape[2:])
            conditioning[families.LENGTHS] = torch.tensor([LONGEST])  # a number, where no other tensor has a value
        if "encoding" in parts:
            with families.on_device(family, family.encoders()["vae"]), torch.no_grad(), measured("encoding"):
                families.encode_images(family, torch.zeros(1, 3, side, side))
        families.place(family, text_encoder=text_encoder)
        train(family, settings, conditioning, [way for way in WAYS if way in parts], measured)
        if "preview" in parts:
            with measured("preview"):
                preview(family, conditioning, side // 8)
    return {name: peak for name, peak in peaks.items() if name in parts}


@torch.no_grad()
def preview(family: Family, conditioning: dict[str, Tensor], side: int) -> None:
    """Do what takes memory in a preview: predict with and without the prompt, and decode."""
    doubled = {name: torch.cat([row, row]) for name, row in conditioning.items()}
    noisy, timesteps = torch.zeros(2, 4, side, side, device=CARD), torch.zeros(2, dtype=torch.long, device=CARD)
    with loading.autocast(family.denoiser):
        family.predict(noisy, timesteps, {**doubled, "sizes": torch.zeros(2, 6, device=CARD)})
    with families.on_device(family, family.encoders()["vae"]):
        families.decode_to_pixels(family, noisy[:1])


def train(
    family: Family, settings: TrainConfig, conditioning: dict[str, Tensor], ways: Sequence[str], measured: Measured
) -> None:
    """Measure the gradients of one image, beside the state of the optimizer, in some ways of gradient checkpointing."""
    adapter = families.attach(family, settings.adapter, text_encoder=settings.training.text_encoder, seed=0)
    optimizer = settings.optimizer.build(adapter.groups(1.0))
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state is there from now on
    optimizer.zero_grad()
    side, channels = settings.training.resolution // 8, family.latent_shape[0]
    images = settings.training.batch_size
    latents, sizes = torch.zeros(images, channels, side, side, device=CARD), torch.zeros(images, 6, device=CARD)
    rows = {name: torch.cat([row] * images) for name, row in conditioning.items()}
    cached = None if settings.training.text_encoder else {**rows, "sizes": sizes}
    batch = Batch(latents, latents.clone(), cached, ("a person",) * images, images, sizes=sizes)
    for way in ways:
        gradient_checkpointing.recompute(family, *WAYS[way])
        with measured(way):
            batches: Any = SimpleNamespace(at=lambda *_: batch, base_predictions={})
            model = cast(Any, Accelerator()), family, adapter
            for part, rng in optimizer_step.micro_batches(*model, batches, settings, [(0, 0)]):
                optimizer_step.add_gradient(*model, part, settings, rng)
        optimizer.zero_grad()


def build(base: str, **changes: object) -> Family:
    """Build a base model in main memory, in bf16 and without values; some settings of its denoiser may be others."""
    family, own = MODELS[base]
    folder, spec = CONFIGS / family, FAMILIES[family]
    components: dict[str, Any] = dict(spec.pipeline_options)
    for name, origin in json.loads(hub.index(folder).read_text()).items():
        if name.startswith("_") or not isinstance(origin, list) or name in components:
            continue
        large = spec.large_encoder
        own_class = large.model if large and name == large.component else origin[1]
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}[origin[0]], own_class)
        if name.endswith(("tokenizer", "tokenizer_2", "tokenizer_3")):
            owners = [part for part in (large, spec.conditioner) if part and name == part.tokenizer]
            texts = owners[0].texts if owners else "clip"
            component = kind.from_pretrained(CONFIGS / texts, local_files_only=True)
        elif name.startswith("text_encoder"):
            source = next(path for path in (own / name, folder / name) if path.is_dir())
            component = kind(kind.config_class.from_pretrained(source))
        elif name == "scheduler":  # it looks at its own values
            with unset_fake_temporarily():
                component = kind.from_config(kind.load_config(folder / name))
        else:
            source = next(path for path in (own / name, folder / name) if path.is_dir())
            settings = kind.load_config(source) | (changes if name == spec.denoiser else {})
            component = kind.from_config(settings)
        if isinstance(component, nn.Module):
            precision = torch.float32 if name == "vae" else torch.bfloat16
            loading.convert(component, precision).requires_grad_(False).eval()
        components[name] = component
    pipeline = classes.pipeline(spec)(**components)
    model: Any = _model_class(spec)
    predicts = next(iter(spec.variants))
    return cast(Family, model(pipeline, Base(family, predicts, False, ""), CARD, single_file=False))


def settings_of(base: str, *, text_encoder: bool, share: float, side: int = 0, images: int = 1) -> TrainConfig:
    """Return the settings of a run with some images at a time, at the base model's resolution unless it is given."""
    family = MODELS[base][0]
    resolution = side or next(iter(FAMILIES[family].variants.values()))
    data: dict[str, Any] = {"name": "x", "dataset": "x", "model": {"base": "x", "family": family}}
    data |= {"adapter": {"rank": 16}, "preservation": {"share": share}}
    data["training"] = {"resolution": resolution, "text_encoder": text_encoder}
    data["training"] |= {"batch_size": images, "micro_batches": 1, "gradient_accumulation": 1}
    return config.build(data)


if __name__ == "__main__":
    json.dump(main(float(sys.argv[1]), sys.argv[2], set(sys.argv[3:])), sys.stdout)
