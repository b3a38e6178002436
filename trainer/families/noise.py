"""Noise schedules: how latents are noised in training, and what the denoiser has to predict of them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainer.base_models.spec import PredictionType


class NoiseSchedule(Protocol):
    """The noise at each timestep, from 0 (nearly none) to `timesteps` - 1 (nearly nothing else)."""

    @property
    def timesteps(self) -> int:
        """Number of timesteps."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents [b, c, h, w] with noise of that shape at timesteps [b]."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser should predict [b, c, h, w]."""

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratios [b] at timesteps."""

    def error_scale(self, snr: Tensor) -> Tensor:
        """Return the squared error of a prediction over that of the image it implies [b], at these SNRs [b]."""

    @property
    def prediction_type(self) -> PredictionType:
        """What the denoiser predicts."""


@dataclass(frozen=True)
class DiscreteNoise:
    """Variance-preserving noise by the cumulative products of alphas [timesteps].

    Ho et al. 2020, https://arxiv.org/abs/2006.11239 (section 2); the target is the noise (section 3.4) or v, Salimans &
    Ho 2022, https://arxiv.org/abs/2202.00512 (section 4).
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType

    @property
    def timesteps(self) -> int:
        """Number of timesteps."""
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sqrt(alpha) * latents + sqrt(1 - alpha) * noise."""
        alpha = self._alpha(timesteps)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or v = sqrt(alpha) * noise - sqrt(1 - alpha) * latents."""
        if self.prediction_type == "epsilon":
            return noise
        alpha = self._alpha(timesteps)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return alpha / (1 - alpha)."""
        alpha = self.alphas_cumprod[timesteps]
        return alpha / (1 - alpha)

    def error_scale(self, snr: Tensor) -> Tensor:
        """Return the SNR for noise, SNR + 1 for v (section 4 of Salimans & Ho)."""
        return snr if self.prediction_type == "epsilon" else snr + 1

    def _alpha(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
