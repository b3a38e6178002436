"""Generate images with a base model and adapters at given strengths; the base and the adapters stay loaded."""

import gc
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer import devices, families
from trainer.adapter_files import reader
from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import MICRO, layer_names
from trainer.base_models.versions import Version, versions
from trainer.config import ModelConfig, PictureConfig
from trainer.devices import Untyped
from trainer.errors import UserError, is_out_of_memory
from trainer.families import Conditioning, Family
from trainer.families.files import loading
from trainer.families.hardware import offload
from trainer.sampling import prediction_probe

Progress = Callable[[int, int], None]
Encoded = Mapping[str, Conditioning]  # by prompt


def encode(family: Family, prompts: Iterable[str]) -> Encoded:
    """Encode prompts for `generate`; the text encoders are on the device only meanwhile, unless they are there."""
    encoders = family.prompt_encoders().values()
    with families.on_device(family, *encoders), torch.no_grad(), loading.autocast(family.denoiser):
        return {prompt: family.encode_prompts([prompt]) for prompt in prompts}


def generate(
    family: Family, request: PictureConfig, progress: Progress | None = None, encoded: Encoded | None = None
) -> Image.Image:
    """Generate one image, the same for the same request on the same device: its noise comes only from the seed."""

    def report(_: Untyped, step: int, __: Untyped, values: dict[str, Any]) -> dict[str, Any]:
        if progress:
            progress(step + 1, request.steps)
        return values

    encoded = encoded or encode(family, {request.prompt, request.negative})
    latents = family.sample(
        encoded[request.prompt],
        encoded[request.negative],
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width or None,
        height=request.height or None,
        generator=torch.Generator().manual_seed(request.seed),
        callback_on_step_end=report,
    )
    with families.on_device(family, family.encoders()["vae"]):  # outside autocast: XL's decoder overflows in fp16
        return families.decode_latents(family, latents)[0]


def native_side(family: Family) -> int:
    """Return the side in pixels of the images that a base model generates by default."""
    return int(family.latent_shape[-1] * family.pipeline().vae_scale_factor)


class Sampler:
    """One base model with the adapters used so far, kept loaded; `notes` are on the latest image."""

    def __init__(self) -> None:
        self._base: ModelConfig | None = None
        self._versions: list[Version] = []  # of the base's files
        self._family: Family | None = None
        self._loaded: dict[tuple[str, int], str] = {}
        self._frugal = False
        self.notes: tuple[str, ...] = ()
        devices.prepare()

    def generate(self, request: PictureConfig, progress: Progress | None = None) -> Image.Image:
        """Generate one image; the base and each adapter file are loaded only when they changed.

        If memory runs out, this and all later images are generated with less: what encodes and decodes is on the device
        only while it is needed.

        Raises:
            UserError: the base or an adapter cannot be used, or there is too little memory.
        """
        if (image := self._if_it_fits(request, progress)) is None:
            self._frugal = True
            image = self._if_it_fits(request, progress)
        if image is None:
            raise UserError(
                "There is not enough memory to generate this image.",
                "Choose a smaller size, close other programs that use the GPU, or wait until the training has ended.",
            )
        return image

    def _if_it_fits(self, request: PictureConfig, progress: Progress | None) -> Image.Image | None:
        """Generate one image; None if there is too little memory for it, all of which is free then."""
        device = devices.best()
        devices.limit_memory(device, devices.available_memory(device) - devices.LEFT)
        try:
            return self._generate(request, progress)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self._family, self._base, self._loaded = None, None, {}
        gc.collect()
        devices.trim()
        return None

    def _generate(self, request: PictureConfig, progress: Progress | None) -> Image.Image:
        family = self._load_base(
            ModelConfig(
                base=request.base, revision=request.revision, prediction_type=request.objective, vae=request.vae
            )
        )
        family.set_clip_skip(request.clip_skip)
        names, strengths, patches = [], [], []
        self.notes = ()
        for file, strength in request.adapters:
            if not strength:
                continue
            adapter = read_adapter(Path(file))
            if layer_names.T5 not in family.prompt_encoders():
                adapter, sentence = reader.without_t5(adapter, Path(file).name)
                self.notes += sentence
            # In the layers of a small model, peft's own take a fifth of the time; its weights are patched in 10 ms.
            # Those that wait in main memory are patched there.
            as_layers = request.base != MICRO and not offload.is_offloaded(family.denoiser)
            if as_layers and reader.readable_by_diffusers(adapter):
                names.append(self._load_adapter(family, Path(file), adapter))
                strengths.append(strength)
            else:
                patches.append((adapter, strength))
        pipeline = family.pipeline()
        if names:
            pipeline.enable_lora()
            pipeline.set_adapters(names, strengths)
        elif self._loaded:
            pipeline.disable_lora()
        with families.patched(family, patches):
            return generate(family, request, progress)

    def _load_base(self, base: ModelConfig) -> Family:
        current = versions(base.base, base.revision, base.vae)
        if self._family is None or (self._base, self._versions) != (base, current):
            self._family, self._base, self._loaded = None, None, {}
            device = devices.best()
            self._family = families.read(base, device, devices.sampling_dtype(device))
            families.place(self._family, text_encoder=not self._frugal, vae=not self._frugal)
            if self._family.base.prediction_type is None and base.prediction_type == "auto":
                prediction_probe.probe_with_gray(self._family)
            self._base, self._versions = base, current
        return self._family

    def _load_adapter(self, family: Family, file: Path, adapter: AdapterFile) -> str:
        """Load an adapter file under a name of its own; a file that was rewritten is loaded again."""
        key = (str(file), file.stat().st_mtime_ns)
        if key not in self._loaded:
            base_name = Path(self._base.base if self._base else "").name
            pipeline = family.pipeline()
            if len(self._loaded) >= 8:
                pipeline.unload_lora_weights()
                self._loaded = {}
            name = f"adapter{len(self._loaded)}"
            try:
                pipeline.load_lora_weights(dict(adapter.tensors), adapter_name=name)
            except (ValueError, RuntimeError, KeyError, IndexError) as error:
                self._family = None  # it may be half loaded
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    "The adapter {name} does not fit the base model {base_name!r}.",
                    "Choose the base model that it was trained on.",
                    name=file.name,
                    base_name=base_name,
                ) from error
            self._loaded[key] = name
        return self._loaded[key]


@lru_cache(maxsize=16)
def _read_adapter(file: Path, _: int) -> AdapterFile:
    return reader.read(file)


def read_adapter(file: Path) -> AdapterFile:
    """Read an adapter file, again only if it was rewritten.

    Raises:
        UserError: it does not exist, or is not an adapter file.
    """
    if not file.is_file():
        raise UserError("The adapter {name} does not exist.", "Choose another one.", name=file.name)
    return _read_adapter(file, file.stat().st_mtime_ns)
