"""The micro VAE: an encoder whose weights are computed from the patch code, and a decoder that is trained.

The result is an ordinary AutoencoderKL. Only its encoder is unusual: it computes the linear patch code exactly, so the
latents of the base's training can be made before any VAE exists, and decoder and base can be trained in any order.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .config import PretrainConfig
from .patch_code import PatchCode, fit_patch_code
from .pictures import Pictures
from .schedule import Clock, Training, seed_step
from .written_encoder import write_encoder

AVERAGE = 0.998
LINE_EVERY = 250


def fit_code(config: PretrainConfig, world: Pictures, others: Pictures) -> PatchCode:
    """Fit the patch code on a part of the pictures, which is plenty for its few thousand numbers."""
    images = torch.cat([world.tensor(slice(0, 2400)), others.tensor(slice(0, None, max(1, len(others) // 400)))])
    inner = (12, 32, 64)  # all of 2 x 2 pixels, most of 4 x 4 and of 8 x 8
    return fit_patch_code(images, (*inner, config.latent_channels - 2))


def build_vae(config: PretrainConfig, code: PatchCode) -> AutoencoderKL:
    """Build the VAE with the code as its encoder and an untrained decoder."""
    levels = len(config.vae_channels)
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=16,
        sample_size=config.image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    write_encoder(vae, code)
    with torch.no_grad():
        for block in [vae.decoder.mid_block, *vae.decoder.up_blocks]:
            for resnet in block.resnets:
                resnet.conv2.weight.mul_(0.1)  # nearly the identity: a deep narrow decoder starts faster so
    _carry_positions(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


@torch.no_grad()
def _carry_positions(vae: AutoencoderKL) -> None:
    """Lead the two position channels through the untrained decoder, made finer at each level, and take their slope.

    In columns that were doubled the slope on one side is zero: that is how left and right halves differ. Training
    finds this by itself, but late.
    """
    decoder = vae.decoder
    vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(vae.post_quant_conv.out_channels)
    vae.post_quant_conv.bias.zero_()
    smooth, bend = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([1.0, -2.0, 1.0])
    decoder.conv_in.weight[:2] = 0
    decoder.conv_in.weight[:2, -2:, 1, 1] = torch.eye(2)
    for level, block in enumerate(decoder.up_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                resnet.conv_shortcut.weight[:4] = 0
                resnet.conv_shortcut.weight[:4, :4, 0, 0] = torch.eye(4)
        for upsampler in block.upsamplers or []:
            weight = upsampler.conv.weight
            weight[:4] = 0
            weight[0, 0, 1], weight[1, 1, :, 1] = smooth, smooth
            weight[2, 0, 1], weight[3, 1, :, 1] = bend * 2 ** (level + 1), bend * 2 ** (level + 1)


class DecoderTraining(Training[AutoencoderKL]):
    """Training of the decoder."""

    def __init__(self, config: PretrainConfig, code: PatchCode, checkpoint: Path) -> None:
        self.config, self.code = config, code
        rate = config.decoder_learning_rate
        super().__init__(build_vae(config, code), checkpoint, rate=rate, beta2=0.99, decay=1e-4, average=AVERAGE)

    def train_step(self, world: Pictures, others: Pictures) -> float:
        """Do one step and return its loss."""
        config = self.config
        chooser = seed_step(config.seed, self.step)
        images = _draw_batch(world, others, config.decoder_batch, chooser)
        latents = self.code.encode(images)
        # The base will never hit the latents exactly; the decoder learns to look past small errors.
        latents = latents + torch.randn_like(latents) * torch.rand(len(images), 1, 1, 1) * 0.15
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.model.decode(latents).sample
        loss = reconstruction_loss(decoded.float(), images)
        return self.advance(loss, len(images), total=config.decoder_samples, decay_share=config.decay_share)


def train_decoder(
    training: DecoderTraining, world: Pictures, others: Pictures, unseen: Pictures, *, clock: Clock
) -> None:
    """Train on the configured number of samples, or until the time is up."""
    probes = {
        "world": world.tensor(slice(len(world) - 48, len(world))),
        "held out": unseen.tensor(slice(0, None, max(1, len(unseen) // 48))),
    }
    while training.seen < training.config.decoder_samples and not clock.over():
        clock.add(training.train_step(world, others), training.config.decoder_batch)
        if clock.checkpoint_due():
            training.save()
        if training.step % LINE_EVERY == 0:
            quality = ", ".join(f"{name} {psnr(training, images):.2f} dB" for name, images in probes.items())
            print(f"decoder: step {training.step}, {training.seen} samples, {clock.line()}, {quality}", flush=True)
    training.save()
    quality = ", ".join(f"{name} {psnr(training, images):.2f} dB" for name, images in probes.items())
    print(f"decoder: {training.seen} samples, {quality}", flush=True)


@torch.no_grad()
def reconstruct(training: DecoderTraining, images: Tensor) -> Tensor:
    """Encode pictures with the code and decode them with the averaged decoder."""
    decoded: Tensor = training.averaged.decode(training.code.encode(images)).sample
    return decoded.clamp(-1, 1)


def psnr(training: DecoderTraining, images: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of the reconstructions in dB."""
    errors = (reconstruct(training, images) - images).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Compare colors and edges, at full size and at half; edges are what makes flat drawings look sharp."""
    half_decoded, half_images = F.avg_pool2d(decoded, 2), F.avg_pool2d(images, 2)
    return (
        F.l1_loss(decoded, images)
        + 0.5 * F.mse_loss(decoded, images)
        + 0.7 * _edge_loss(decoded, images)
        + 0.5 * F.l1_loss(half_decoded, half_images)
        + 0.4 * _edge_loss(half_decoded, half_images)
    )


def _edge_loss(decoded: Tensor, images: Tensor) -> Tensor:
    error = decoded - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _draw_batch(world: Pictures, others: Pictures, count: int, chooser: random.Random) -> Tensor:
    """Take pictures of both sets and change some, so that the decoder copes with pictures of users."""
    share = len(world) / (len(world) + 3 * len(others))
    images = []
    for _ in range(count):
        source = world if chooser.random() < share else others
        image = source.tensor([chooser.randrange(len(source))])
        images.append(_augment(image, chooser))
    return torch.cat(images)


def _augment(image: Tensor, chooser: random.Random) -> Tensor:
    """Permute or invert colors, mirror, shift or coarsen, each with some probability."""
    recolor = chooser.random()
    if recolor < 0.2:
        image = image[:, chooser.sample(range(3), 3)]
    elif recolor < 0.28:
        image = -image
    if chooser.random() < 0.3:
        image = image.flip(-1)
    if chooser.random() < 0.25:
        image = image.roll((chooser.randint(-12, 12), chooser.randint(-12, 12)), (-2, -1))
    if chooser.random() < 0.08:
        block = chooser.choice((4, 8))
        image = F.interpolate(F.avg_pool2d(image, block), scale_factor=block)
    return image
