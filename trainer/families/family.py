"""Families of base models: what all of them do alike.

A family is one file here with its model: how it encodes prompts and predicts. Nothing here knows of datasets, losses or
files for other programs.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.base_models.detect import Base
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import PredictionType
from trainer.devices import Untyped
from trainer.families.files import loading
from trainer.families.files.loading import Pipeline
from trainer.families.hardware import offload
from trainer.families.noise import NoiseSchedule

Conditioning = dict[str, Tensor]
LENGTHS = "lengths"  # of texts [b], in tokens: of conditioning they alone stay in main memory, where they are read
# Layers of transformers in which text and image have weights of their own.
JOINT_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
TILE = 512  # side in pixels


class Family:
    """A frozen diffusion model that can take an adapter, and that diffusers has a pipeline for.

    A family adds its noise schedule, and how prompts are encoded and noise is predicted.
    """

    noise: NoiseSchedule  # which also says what the denoiser predicts
    denoiser_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    idle: tuple[str, ...] = ()  # prefixes of the names of modules whose output is never used, so that they cannot learn

    def __init__(self, pipeline: Pipeline, base: Base, device: torch.device, *, single_file: bool) -> None:
        self._pipeline = pipeline
        self._single_file = single_file
        self.base = base
        self.spec = FAMILIES[base.family]
        self.device = device
        self.denoiser: nn.Module = loading.denoiser(pipeline)
        # Those that can take an adapter, by prefix in adapter files.
        self.text_encoders: dict[str, nn.Module] = {
            encoder.prefix.removesuffix("_"): getattr(pipeline, encoder.component)
            for encoder in self.spec.text_encoders
        }

    @classmethod
    def load(
        cls,
        path: Path,
        base: Base,
        vae: Path | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        large_encoder: bool = True,
    ) -> Self:
        """Load a base model from a path into main memory; nothing is fetched and nothing is unpickled.

        The VAE at the other path, if there is one, is taken in place of the base model's own. Without its large text
        encoder it generates images from prompts that are encoded already.

        Raises:
            UserError: files are missing or damaged.
        """
        pipeline = loading.load_pipeline(path, base, vae, dtype, large_encoder=large_encoder)
        return cls(pipeline, base, device, single_file=path.is_file())

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of an image at its native resolution, which some denoisers have on record."""
        config: Any = loading.denoiser(self._pipeline).config
        native = self.spec.variants[self.spec.first] // int(self._pipeline.vae_scale_factor)
        side = int(config.get("sample_size") or native)
        return self.spec.vae_channels, side, side

    def _sides(self, options: Mapping[str, Any]) -> dict[str, int]:
        """Return the height and width of an image in pixels, in whole tokens of 2 x 2 latents."""
        scale = int(self._pipeline.vae_scale_factor)
        native, token = self.latent_shape[1] * scale, 2 * scale
        return {name: (options.get(name) or native) // token * token for name in ("height", "width")}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser's inputs."""
        return next(self.denoiser.parameters()).dtype

    def set_prediction_type(self, predicts: PredictionType) -> None:
        """Take the denoiser's output as this, in training and sampling; by flow matching it is always the direction."""

    def set_clip_skip(self, clip_skip: int) -> None:
        """Take the text encoder's output at this layer from its end; ignored where all models have the same one."""

    def set_guidance(self, guidance: float) -> None:
        """Tell the denoiser this guidance in training, if it is distilled to follow one; else ignore it."""

    def module_name(self, path: str) -> str:
        """Return the name of a module of the denoiser in adapter files, without its prefix: its path."""
        return path.replace(".", "_")

    def generate_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the scaled latents [c, side/8, side/8] of an image, the same for the same request."""
        return loading.generate_latents(self._pipeline, prompt, seed=seed, steps=steps, guidance=guidance, side=side)

    def generate_from_prompts(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Generate the same by way of `sample`, for a pipeline whose own latents are not those of the denoiser."""
        with torch.no_grad():
            positive, negative = (self.encode_prompts([text]) for text in (prompt, ""))
        rng = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "width": side, "height": side}
        return self.sample(positive, negative, generator=rng, **options)[0]

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts into conditioning for the denoiser; each row of its tensors belongs to a prompt.

        Of each prompt, `chunks` times as many tokens are read as the text encoder can take.
        """
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        The conditioning is that of the prompts and, under `sizes` [b, 6], how large each image was and where it was
        cropped, which a family need not use.
        """
        raise NotImplementedError

    def sample(self, prompt: Conditioning, negative: Conditioning, **options: Untyped) -> Tensor:
        """Generate scaled latents [1, c, h, w] from two encoded prompts; the options are those of a pipeline."""
        prompts = loading.prompt_arguments(without_padding(prompt), without_padding(negative))
        return loading.sample(self._pipeline, prompts, options)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Count the tokens of a prompt without start and end, and those that the text encoders can take."""
        tokenizer = self._pipeline.tokenizer
        return len(tokenizer(prompt, add_special_tokens=False).input_ids), tokenizer.model_max_length - 2

    def pipeline(self) -> Pipeline:
        """Return the live model as a diffusers pipeline."""
        return self._pipeline

    def prompt_encoders(self) -> dict[str, nn.Module]:
        """Return the modules that encode prompts, by name: those that can take an adapter, and a large one."""
        large = self.spec.encoder_of(self.base.size)
        if large and (module := getattr(self._pipeline, large.component)) is not None:
            return {**self.text_encoders, large.file_name: module}
        return self.text_encoders

    def large_blocks(self, module: nn.Module) -> list[nn.Module]:
        """Return the blocks of the large text encoder; none of any other module."""
        large = self.spec.encoder_of(self.base.size)
        if not large or module is not self.prompt_encoders().get(large.file_name):
            return []
        return [*offload.items(module, (large.blocks,)).values()]

    def encoders(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are cached, by name."""
        return {"vae": self._pipeline.vae, **self.prompt_encoders()}

    def encode_latents(self, pixels: Tensor, precision: torch.dtype, *, tiled: bool) -> tuple[Tensor, Tensor]:
        """Encode images [b, 3, H, W] in -1..1: mean and standard deviation [b, c, h, w] of their scaled latents."""
        vae = self._vae(tiled=tiled)
        mixed: AbstractContextManager[Any] = nullcontext()
        if precision != torch.float32:
            if not self.spec.vae_of_videos:
                vae.encoder.to(memory_format=torch.channels_last)  # without it bf16 takes three times as long
            mixed = torch.autocast(self.device.type, dtype=precision)
        with mixed:
            posterior = vae.encode(self._framed(pixels.to(self.device, torch.float32))).latent_dist
        return self._scale(_unframed(posterior.mean.float()), _unframed(posterior.std.float()))

    def _framed(self, images: Tensor) -> Tensor:
        """Return images or latents [b, c, h, w] as the VAE takes them: one of videos, as videos [b, c, 1, h, w]."""
        return images.unsqueeze(2) if self.spec.vae_of_videos else images

    def _scale(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [b, c, h, w] of the VAE's latents as the denoiser has them."""
        shift, factor = self._scaling(mean.device)
        return (mean - shift) * factor, std * factor

    def _unscale(self, latents: Tensor) -> Tensor:
        """Return latents [b, c, h, w] as the VAE has them."""
        shift, factor = self._scaling(latents.device)
        unscaled: Tensor = latents / factor + shift
        return unscaled

    def _scaling(self, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
        """Return shift and factor of the VAE's latents: numbers, or tensors [1, c, 1, 1] if it has them by channel."""
        config = self._pipeline.vae.config
        if self.spec.vae_scale:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (torch.tensor(values, device=device) for values in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1), 1 / std.view(1, -1, 1, 1)

    def decode_latents(self, latents: Tensor, *, tiled: bool) -> Tensor:
        """Decode scaled latents [b, c, h, w] in fp32 to pixels [b, 3, H, W] in -1..1."""
        unscaled = self._framed(self._unscale(latents))
        pixels: Tensor = self._vae(tiled=tiled).decode(unscaled, return_dict=False)[0]
        return _unframed(pixels)

    def _vae(self, *, tiled: bool) -> Untyped:
        """Return the VAE, which computes in tiles that overlap by a quarter, or all at once."""
        vae = self._pipeline.vae
        if self.spec.vae_of_videos:
            vae.tile_sample_min_height = vae.tile_sample_min_width = TILE
            vae.tile_sample_stride_height = vae.tile_sample_stride_width = TILE - TILE // 4
        else:
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // self._pipeline.vae_scale_factor
        vae.use_tiling = tiled
        return vae


def _unframed(videos: Tensor) -> Tensor:
    """Return videos [b, c, 1, h, w] as images [b, c, h, w], and images as they are."""
    return videos.flatten(1, -3)


def without_padding(conditioning: Conditioning) -> Conditioning:
    """Return encoded prompts without the tokens behind the longest one, and without their lengths."""
    if LENGTHS not in conditioning:
        return conditioning
    rows = {name: rows for name, rows in conditioning.items() if name != LENGTHS}
    return {**rows, "text": rows["text"][:, : int(max(conditioning[LENGTHS].tolist()))]}


def stacked(rows: Mapping[str, Sequence[Tensor]]) -> Conditioning:
    """Return encoded prompts of their rows by name; texts are filled up with zeros to the longest one."""
    columns = {name: torch.stack(list(values)) for name, values in rows.items() if name != "text"}
    if "text" in rows:
        columns["text"] = pad_sequence(list(rows["text"]), batch_first=True)
    return columns
