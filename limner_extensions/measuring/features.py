"""Features that images are compared by: those of a CLIP, DINO or DINOv2 model, or of the base model's denoiser.

A feature model turns images into vectors [d], in fp32 on the CPU, which are close where the images are alike. `name` is
for people, and `key` differs where the features of the same image may. If it reads text, the vectors [prompts, d] of
prompts are close to those of images that follow them.

The denoiser's are those of DIFT (Tang et al. 2023, https://arxiv.org/abs/2306.03881): what a block in its middle makes
of an image with a little noise. They need no further model, and every family has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from limner_extensions.measuring import kinds
from trainer import families, storage
from trainer.captioning.loading import load_model
from trainer.config import ModelConfig
from trainer.devices import Untyped, sampling_dtype
from trainer.errors import UserError
from trainer.families import Conditioning, Family, encode_images
from trainer.families.files import loading
from trainer.i18n import _
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training.inputs import augment

LITTLE = 0.25  # of the way from image to noise
NOISES = 4  # that the denoiser's features are the mean of


def load(folder: str, base: ModelConfig, fingerprint: str, device: torch.device) -> "FeatureModel":
    """Load a feature model, or the base model of a run if no folder is named.

    Raises:
        UserError: the folder has no model of a known kind, or it cannot be loaded.
    """
    if not folder:
        family = families.read(base, device, sampling_dtype(device))
        families.place(family, text_encoder=False, vae=True)
        return DenoiserFeatures(family, fingerprint, sampler.encode(family, [""])[""])
    path, kind = kinds.look(folder)
    options = {"add_pooling_layer": False} if kind.pooled else {}
    try:
        model = load_model(getattr(transformers, kind.model_class), path, device, **options)
        processor = transformers.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer = None
        if kind.reads_text:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(path), path.name)
        raise UserError(
            "The feature model {name!r} cannot be loaded: {reason}", kinds.REMEDY, name=path.name, reason=reason[:200]
        ) from error
    return Transformer(f"{path.name} ({kind.name})", _checksum(path), model, processor, tokenizer)


def _checksum(folder: Path) -> str:
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return " ".join(storage.sha256(file) for file in files)


@dataclass(frozen=True)
class Transformer:
    """A vision model of transformers: of CLIP the projected features, of the others those of the class token."""

    name: str
    key: str
    model: Untyped
    processor: Untyped
    tokenizer: Untyped | None

    @torch.inference_mode()
    def image(self, image: Image.Image) -> Tensor:
        """Return the features [d] of an image."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device, self.model.dtype)
        if self.tokenizer:
            return _vectors(self.model.get_image_features(**inputs))[0]
        return _vectors(self.model(**inputs).last_hidden_state[:, 0])[0]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor | None:
        """Return the features of prompts, which are cut off where the model reads no further; None without texts."""
        if self.tokenizer is None:
            return None
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return _vectors(self.model.get_text_features(**tokens))


def _vectors(output: Any) -> Tensor:  # noqa: ANN401 - a tensor or, in newer versions of transformers, an output with one
    tensor: Tensor = getattr(output, "pooler_output", output)
    return tensor.detach().float().cpu()


@dataclass(frozen=True)
class DenoiserFeatures:
    """Activations of a middle block of the base model's denoiser for an image with a little noise, without a prompt.

    Of each of the block's channels, the mean and the spread over the image: what there is, and how it varies.
    """

    family: Family
    fingerprint: str
    empty: Conditioning

    @property
    def name(self) -> str:
        """Name of the model for people."""
        return _("the base model itself")

    @property
    def key(self) -> str:
        """The denoiser's fingerprint, and what else the features depend on."""
        return f"denoiser {self.fingerprint} {LITTLE} {NOISES} {self.family.denoiser.dtype}"

    @torch.no_grad()
    def image(self, image: Image.Image) -> Tensor:
        """Return the features of the middle square of an image, at the size that the base model was trained on."""
        family, side = self.family, sampler.native_side(self.family)
        pixels = augment.pixels(image, (side, side), flip=False)[None]
        latents, _spread = encode_images(family, pixels)
        conditioning = {name: row.expand(NOISES, *row.shape[1:]) for name, row in self.empty.items()}
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * NOISES, device=family.device)
        noise = torch.cat(
            [torch.randn(latents.shape, generator=generator("features", draw)) for draw in range(NOISES)]
        ).to(family.device)
        share, last = torch.full((NOISES,), LITTLE), family.noise.timesteps - 1
        timesteps = family.noise.at(share, 0, last, noise.shape).to(family.device)
        noisy = family.noise.add_noise(latents.expand(NOISES, *latents.shape[1:]), noise, timesteps)
        seen: list[Tensor] = []
        hook = _middle(family).register_forward_hook(lambda _block, _inputs, output: seen.append(_hidden(output)))
        try:
            with loading.autocast(family.denoiser):
                family.predict(noisy, timesteps, conditioning | {"sizes": sizes})
        finally:
            hook.remove()
        positions = seen[0].float().mean(0)  # [positions, channels], of all noises
        return torch.cat([positions.mean(0), positions.std(0)]).cpu()

    def texts(self, _prompts: Sequence[str]) -> None:
        """Return None: a denoiser has no features of texts."""


FeatureModel = Transformer | DenoiserFeatures


def _middle(family: Family) -> nn.Module:
    """Return the block whose output are the features: the second one up of a UNet, two thirds into a transformer.

    Raises:
        UserError: the model has no blocks of the name that its family has for them.
    """
    name = family.spec.modules.blocks[0]
    if family.spec.unet:
        name = "up_blocks"
    blocks: list[nn.Module] = list(getattr(family.denoiser, name, ()))
    if not blocks:
        raise UserError(
            "The model has no blocks to read features from under the name that {family} has for them: {name}.",
            "Choose a feature model.",
            family=family.spec.title,
            name=name,
        )
    if family.spec.unet:
        return blocks[min(1, len(blocks) - 1)]
    return blocks[2 * len(blocks) // 3]


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return a block's output as [batch, positions, channels]; that of a transformer block ends with the image's."""
    tensor = output[-1] if isinstance(output, tuple) else output
    return tensor.flatten(2).transpose(1, 2) if tensor.dim() == 4 else tensor
