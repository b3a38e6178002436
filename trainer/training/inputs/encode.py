"""Precompute VAE latents and text embeddings for a dataset; cached by content hash.

A file's key is a hash of all that its value depends on, so nothing has to be invalidated and deleting the cache is
always safe.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer import devices, paths
from trainer.base_models import MICRO, MICRO_FOLDER
from trainer.config import TrainConfig
from trainer.data import buckets, dataset, images
from trainer.data.captions import of_class
from trainer.data.dataset import Example
from trainer.errors import UserError, is_out_of_memory
from trainer.families import (
    Family,
    computed_buffers,
    encode_images,
    encoding_precision,
    fingerprint,
    fingerprints,
    on_device,
    without_padding,
)
from trainer.families.hardware import gradient_checkpointing, offload
from trainer.i18n import _
from trainer.training.inputs import augment, tensor_cache
from trainer.training.inputs.augment import Size, View
from trainer.training.inputs.batches import Batches, Pool, Pools
from trainer.training.inputs.tensor_cache import TensorCache

Progress = Callable[[str, int, int], None]
FIRST = Fraction(0)
SHIPPED = MICRO_FOLDER / "preserved.safetensors"  # what micro's presets preserve (scripts/preserved_latents.py)
SAMPLING_STEPS = 20  # for images to preserve, however few the previews have


def build(
    family: Family,
    examples: Sequence[Example],
    config: TrainConfig,
    progress: Progress,
    start: Fraction = FIRST,
    held: Sequence[Example] = (),
) -> Batches:
    """Encode a dataset, or read what is already encoded.

    Args:
        family: the base model.
        examples: images and captions.
        config: the run.
        progress: called with the name of the phase, the number done, and the total.
        start: position in the dataset at which this process begins, as a share, of several that encode the same; what
            another one has done is only read.
        held: images to measure, which are not trained.

    Raises:
        UserError: no image can be decoded, or one is too large or has latents that are not finite; it names the file.
            Or there are no regularization images.
    """
    prints = fingerprints(config.model, family.encoders())
    precision = encoding_precision(family)
    if precision != torch.float32:
        prints["vae"] += f" {precision}"
    if config.model.vae:  # its weights do not tell how its latents are scaled
        prints["vae"] += f" for {family.spec.name}"
    if config.model.clip_skip > 1:
        for name in family.text_encoders:
            prints[name] += f" clip skip {config.model.clip_skip}"
    for name, module in family.prompt_encoders().items():
        prints[name] += _position_precision(module)
    encoder = _Encoder(family, config, TensorCache(), progress, prints, start)
    sides, regularization = config.training.resolutions, dataset.read_regularization(config.taught)
    with on_device(family, family.encoders()["vae"]):
        resolutions = tuple(encoder.pools(examples, regularization, side) for side in sides)
        measured = encoder.pool(held, "held-out", sides[0]) if held else None
    with on_device(family, *family.prompt_encoders().values()):
        conditioning = _encode_prompts(encoder, resolutions[0], measured, examples[0].path.parent)
        preserved = encoder.generate_preserved()
    return Batches(resolutions, conditioning, encoder.cache, config, family.device, preserved, measured)


def _position_precision(text_encoder: nn.Module) -> str:
    """Return the precision of the positions of tokens if it is not that of the weights: it was, and encoded worse."""
    own = next(text_encoder.parameters()).dtype
    kinds = {buffer.dtype for _, _, buffer in computed_buffers(text_encoder) if buffer.is_floating_point()}
    return "".join(sorted(f" {kind}" for kind in kinds - {own}))


def _encode_prompts(encoder: "_Encoder", pools: Pools, measured: Pool | None, folder: Path) -> dict[str, Path]:
    """Encode all prompts of a run; returns the file of each, in the cache of a folder."""
    config, own, priors = encoder.config, pools.own, pools.priors
    prompts = _preservable(own, config)
    if not config.training.text_encoder:
        prompts |= {"", *itertools.chain(*own.texts)}
        prompts |= {text for prior in priors for texts in prior.texts for text in texts}
        if measured:
            prompts |= {texts[0] for texts in measured.texts}
        if config.captions.trigger_only:
            prompts |= {*own.triggers}
    conditioning: dict[str, Path] = {}
    for number, prompt in enumerate(sorted(prompts)):
        encoder.progress(_("Encoding captions"), number, len(prompts))
        conditioning[prompt] = encoder.encode_prompt(prompt, folder)
    return conditioning


def _preservable(own: Pool, config: TrainConfig) -> set[str]:
    """Return all prompts that output preservation can sample."""
    if not config.preservation.share:
        return set()
    captions = {
        of_class(caption, config.class_words)
        for texts, trigger in zip(own.texts, own.triggers, strict=True)
        for caption in texts
        if trigger
    }
    return {*config.preservation.prompts, *captions}


@dataclass(frozen=True)
class _Encoder:
    family: Family
    config: TrainConfig
    cache: TensorCache
    progress: Progress
    fingerprints: dict[str, str]
    start: Fraction

    def pools(self, examples: Sequence[Example], regularization: Sequence[Sequence[Example]], resolution: int) -> Pools:
        """Encode all images that are trained, at one resolution."""
        own = self.pool(examples, "", resolution)
        priors = (
            self.pool(images, "prior" + str(place or ""), resolution) for place, images in enumerate(regularization)
        )
        return Pools(own, tuple(priors))

    def pool(self, examples: Sequence[Example], name: str, resolution: int) -> Pool:
        """Encode images, each in all its views, in the buckets of a resolution."""
        sizes = buckets.buckets([(example.width, example.height) for example in examples], resolution)
        encoded: dict[int, dict[Path, View]] = {}
        for number in self._order(len(examples)):
            self.progress(_("Encoding images"), len(encoded), len(examples))
            with suppress(images.DamagedError):  # `warn` names it
                encoded[number] = self._encode(examples[number], sizes[number])
        readable = sorted(encoded)
        if examples and not readable:
            raise UserError("None of the images can be decoded.", "Export them again as PNG or JPEG.")
        files = [tuple(encoded[number]) for number in readable]
        conditioning = [
            tuple(
                augment.size_conditioning(examples[number].width, examples[number].height, sizes[number], view)
                for view in encoded[number].values()
            )
            for number in readable
        ]
        shapes = [tuple(self.cache.get(first)["mean"].shape) for first, *_unused in files]
        texts = [augment.caption_variants(examples[number], self.config) for number in readable]
        triggers = [examples[number].trigger for number in readable]
        batch_size = self.config.training.batch_size
        return Pool(files, shapes, texts, triggers, self.config.seed, batch_size, name, conditioning)

    def _order(self, count: int) -> list[int]:
        """Return numbers from this process's start, wrapping around: so several share the work, and none waits."""
        first = int(self.start * count)
        return [*range(first, count), *range(first)]

    def _encode(self, example: Example, size: Size) -> dict[Path, View]:
        data = example.path.read_bytes()
        content = hashlib.sha256(data).hexdigest()
        masked = self.config.objective.masked_loss
        mask_data = dataset.read_mask(example.path) if masked else b""
        mask_key = (f"mask {hashlib.sha256(mask_data).hexdigest()}",) if masked else ()
        keys = {"mean", "std", "mask"} if masked else {"mean", "std"}
        files = {}
        try:
            opacity = None
            if masked or self.config.images.background != "white":
                opacity = images.alpha_channel(data)
            for view in augment.views(content, self.config, transparent=opacity is not None):
                file = tensor_cache.file_of(
                    example.path.parent, content, str(size), *view.key(), *mask_key, self.fingerprints["vae"]
                )
                if not self.cache.has(file, keys):
                    image = images.decode(data, view.background)
                    tensors = self._latents(augment.crop(image, size, view), size, view, example.name)
                    if masked:
                        mask = _decode_mask(mask_data, example.name) if mask_data else opacity
                        tensors["mask"] = augment.mask(mask, image.size, size, view, tensors["mean"])
                    self.cache.put(file, tensors)
                files[file] = view
        except images.DamagedError:
            raise
        except UserError as error:
            if example.name in error.message:
                raise
            message = _("{name} cannot be used: {reason}.", name=example.name, reason=error.message)
            raise UserError(message, error.remedy) from None
        return files

    def _latents(self, image: Image.Image, size: Size, view: View, name: str) -> dict[str, Tensor]:
        mean, std = encode_images(self.family, augment.pixels(image, size, flip=view.flip)[None])
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise UserError(
                "The base model cannot encode {name}: its latents are not finite.", "Remove that image.", name=name
            )
        return {"mean": mean[0].cpu().contiguous(), "std": std[0].cpu().contiguous()}

    def generate_preserved(self) -> dict[str, Path]:
        """Generate the base's own latents [c, h, w] for each prompt to preserve: those it meets when asked for them.

        They are kept beside the runs, as they depend on no dataset and serve all of them.
        """
        preservation, side = self.config.preservation, self.config.training.resolution
        if not preservation.share or not preservation.generated_share:
            return {}
        # A run has its denoiser's fingerprint on record; to hash gigabytes once is enough.
        denoiser = self.config.record.base_sha256 or fingerprint(self.family.denoiser)
        model = "".join(self.fingerprints.values()) + denoiser
        guidance = str(self.config.preview.guidance)
        files = {
            prompt: tensor_cache.file_of(paths.outputs(), prompt, str(side), str(SAMPLING_STEPS), guidance, model)
            for prompt in preservation.prompts
        }
        if self.config.model.base == MICRO and SHIPPED.exists():
            for name, latents in load_file(SHIPPED).items():
                file = paths.outputs() / paths.CACHE / f"{name}.safetensors"
                if file in files.values() and not self.cache.has(file, {"latents"}):
                    self.cache.put(file, {"latents": latents})
        if all(self.cache.has(file, {"latents"}) for file in files.values()):
            return files
        with on_device(self.family, self.family.denoiser):
            for number in self._order(len(files)):
                prompt, file = list(files.items())[number]
                if self.cache.has(file, {"latents"}):
                    continue
                self.progress(_("Generating images to preserve"), number, len(files))
                latents = self._generate(prompt, number)
                self.cache.put(file, {"latents": latents.float().cpu().contiguous()})
        return files

    def _generate(self, prompt: str, seed: int) -> Tensor:
        """Generate latents; if memory runs out, again with the weights of the denoiser's blocks in main memory."""
        guidance, side = self.config.preview.guidance, self.config.training.resolution
        sample = self.family.generate_latents
        generate = partial(sample, prompt, seed=seed, steps=SAMPLING_STEPS, guidance=guidance, side=side)
        try:
            return generate()
        except RuntimeError as error:
            if not is_out_of_memory(error) or offload.is_offloaded(self.family.denoiser):
                raise
        devices.trim()
        gradient_checkpointing.recompute(self.family, "off", "all")
        return generate()

    def encode_prompt(self, prompt: str, folder: Path) -> Path:
        """Encode a prompt; return the file of its embeddings."""
        chunks = self.config.captions.chunks
        model = "".join(self.fingerprints[name] for name in self.family.prompt_encoders()) + "+" * (chunks - 1)
        file = tensor_cache.file_of(folder, hashlib.sha256(prompt.encode()).hexdigest(), model)
        if not self.cache.has(file, set()):
            with torch.no_grad():
                embeddings = self.family.encode_prompts([prompt], chunks)
            rows = {**embeddings, **without_padding(embeddings)}  # padding would take most of the file
            self.cache.put(file, {key: row[0].float().cpu().contiguous() for key, row in rows.items()})
        return file


def _decode_mask(data: bytes, name: str) -> Image.Image:
    """Decode the mask of an image.

    Raises:
        UserError: it is damaged.
    """
    try:
        return images.decode(data).convert("L")
    except images.DamagedError:
        raise UserError("The mask of {name} is damaged.", "Make it again, or remove it.", name=name) from None
