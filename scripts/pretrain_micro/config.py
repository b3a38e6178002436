"""Settings of a pre-training and the paths of its files."""

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that determines the weights, apart from the world itself (world.mjs)."""

    pictures: int
    """Number of pictures of the pre-training designs."""
    decoder_pictures: int
    """Number of pictures of each design that only the decoder sees."""
    decoder_samples: int
    base_samples: int
    image_size: int = 128
    latent_channels: int = 48
    vae_channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    unet_channels: tuple[int, ...] = (112, 144)
    norm_groups: int = 16
    text_width: int = 192
    text_layers: int = 3
    context_length: int = 40
    decoder_batch: int = 8
    decoder_learning_rate: float = 2e-3
    base_batch: int = 32
    base_learning_rate: float = 1.2e-3
    caption_dropout: float = 0.1
    decay_share: float = 0.3
    """Share of all samples, at the end, over which the learning rate falls to zero."""
    seed: int = 1

    def scaled(self, factor: float) -> "PretrainConfig":
        """Return the same with UNet and text encoder so many times as wide, in layers of as many channels per group."""
        return replace(
            self,
            unet_channels=tuple(round(channels * factor) for channels in self.unet_channels),
            norm_groups=round(self.norm_groups * factor),
            text_width=round(self.text_width * factor),
        )

    @property
    def downscale(self) -> int:
        """Pixels per latent position and side."""
        return int(2 ** (len(self.vae_channels) - 1))

    @property
    def latent_size(self) -> int:
        """Latent positions per side."""
        return self.image_size // self.downscale


FULL = PretrainConfig(pictures=48_000, decoder_pictures=1_500, decoder_samples=80_000, base_samples=660_000)

SMOKE = PretrainConfig(
    pictures=240,
    decoder_pictures=20,
    decoder_samples=64,
    base_samples=256,
    unet_channels=(32, 48),
    text_width=32,
    text_layers=1,
)


@dataclass(frozen=True)
class Workspace:
    """Paths of the files of a pre-training. Nothing is kept in memory between steps, so each step can be rerun."""

    root: Path

    @property
    def pictures(self) -> Path:
        """Folder of the raw pictures and their attributes."""
        return self.root / "pictures"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.root / "tokenizer"

    @property
    def patch_code(self) -> Path:
        """File of the principal components that the encoder consists of."""
        return self.root / "patch_code.pt"

    @property
    def latents(self) -> Path:
        """File of all pictures of the world, encoded."""
        return self.root / "latents.pt"

    @property
    def borrowed_vae(self) -> Path:
        """Folder of micro's own VAE, for a base that differs from it in the rest."""
        return self.root / "vae"

    @property
    def decoder(self) -> Path:
        """Checkpoint of the decoder's training."""
        return self.root / "decoder.pt"

    @property
    def base(self) -> Path:
        """Checkpoint of the UNet's and the text encoder's training."""
        return self.root / "base.pt"

    @property
    def export(self) -> Path:
        """Path of the finished diffusers folder."""
        return self.root / "export"

    @property
    def grids(self) -> Path:
        """Folder of sample grids."""
        return self.root / "grids"
