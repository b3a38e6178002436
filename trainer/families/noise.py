"""Noise schedules: how latents are noised in training, and what the denoiser has to predict of them.

Timesteps [b] run from 0 (nearly no noise) to `timesteps` - 1 (nearly nothing else); latents, noise and targets are
[b, c, h, w], signal-to-noise ratios (SNR) [b].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.base_models.spec import PredictionType


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

    def at(self, shares: Tensor, first: int, last: int, shape: Sequence[int]) -> Tensor:
        """Return the whole timesteps at shares (0 to 1) of the way from the first to the last, whatever the shape."""
        return (first + (shares * (last + 1 - first)).long()).clamp(max=last)

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
        """Return the squared error of a prediction over that of the image it implies.

        That is the SNR for noise, SNR + 1 for v (section 4 of Salimans & Ho).
        """
        return snr if self.prediction_type == "epsilon" else snr + 1

    def _alpha(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class FlowNoise:
    """Straight lines from images to noise, along which the denoiser predicts the direction: flow matching.

    Lipman et al. 2023, https://arxiv.org/abs/2210.02747; Esser et al. 2024, https://arxiv.org/abs/2403.03206 (sections
    2 and 3.1). A timestep is 1000 sigma, a fraction. More pixels need more noise to hide as much of the image: `shift`
    is the factor for latents of a shape (section 5.3.2).
    """

    shift: Callable[[Sequence[int]], float]
    timesteps: int = 1000
    prediction_type: PredictionType = "flow"

    def at(self, shares: Tensor, first: int, last: int, shape: Sequence[int]) -> Tensor:
        """Return the timesteps at shares that are shifted for latents of a shape, between the first and the last."""
        shift = self.shift(shape)
        start, stop = (_shifted(torch.tensor(bound / self.timesteps), 1 / shift) for bound in (first, last + 1))
        return self.timesteps * _shifted(start + shares * (stop - start), shift)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return (1 - sigma) * latents + sigma * noise."""
        sigma = self._sigma(timesteps)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noise - latents."""
        return noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return ((1 - sigma) / sigma)^2."""
        sigma = timesteps / self.timesteps
        return ((1 - sigma) / sigma) ** 2

    def error_scale(self, snr: Tensor) -> Tensor:
        """Return the same: 1 / sigma^2 = (sqrt(SNR) + 1)^2, as the image is the noisy one less sigma * direction."""
        return (snr.sqrt() + 1) ** 2

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return (timesteps / self.timesteps).view(-1, 1, 1, 1)


NoiseSchedule = DiscreteNoise | FlowNoise


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    """Return shift * sigma / (1 + (shift - 1) * sigma); the inverse has 1 / shift."""
    return shift * sigma / (1 + (shift - 1) * sigma)
