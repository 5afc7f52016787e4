"""The objective: rectified flow between a clean latent (sigma 0) and noise (sigma 1).

    x_sigma = (1 - sigma) x_0 + sigma e,   velocity target = e - x_0,   loss = mean square error

(Liu et al. 2022, "Flow Straight and Fast"; sigma's logit-normal distribution: Esser et al. 2024,
"Scaling Rectified Flow Transformers", section 3.1.) All of it in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from anima_pipe.errors import ConfigError

DISTRIBUTIONS: Final = ("logit_normal", "uniform")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaConfig:
    """How the noise levels of training are distributed."""

    distribution: str = "logit_normal"
    """"logit_normal" (sigmoid of a normal) or "uniform"."""
    sigmoid_scale: float = 1.0
    """Standard deviation of the normal behind "logit_normal"; 1 to 1.3 is usual."""
    shift: float = 1.0
    """Pushes sigma towards noise: s -> shift s / (1 + (shift - 1) s); 1 leaves it."""

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ConfigError(
                f"unknown distribution of sigma {self.distribution!r}",
                f"use one of {', '.join(DISTRIBUTIONS)}",
            )
        if not self.sigmoid_scale > 0 or not self.shift > 0:
            raise ConfigError(
                f"sigmoid_scale {self.sigmoid_scale} and shift {self.shift} must be above 0",
                "use 1.0 for either when in doubt",
            )


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Push noise levels in [0, 1] towards 1 by a time shift (Esser et al. 2024, equation 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_sigmas(count: int, config: SigmaConfig, generator: torch.Generator) -> torch.Tensor:
    """Draw noise levels, Float32[count] in [0, 1], on the generator's device."""
    device = generator.device
    if config.distribution == "uniform":
        sigmas = torch.rand(count, generator=generator, device=device)
    else:
        normal = torch.randn(count, generator=generator, device=device)
        sigmas = torch.sigmoid(normal * config.sigmoid_scale)
    return shift_sigmas(sigmas, config.shift)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return (1 - sigma) latents + sigma noise, Float32[B, C, H, W]; sigmas Float32[B]."""
    return torch.lerp(latents.float(), noise.float(), sigmas.float().view(-1, 1, 1, 1))


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the velocity from latent to noise, Float32[B, C, H, W]."""
    return noise.float() - latents.float()


def sample_losses(velocity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return each sample's mean square error, Float32[B]."""
    return (velocity.float() - target.float()).square().flatten(1).mean(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """The random numbers of one batch."""

    noise: torch.Tensor
    """Float32[B, C, H, W], standard normal."""
    sigmas: torch.Tensor
    """Float32[B], in [0, 1]."""


def draw(shape: torch.Size, config: SigmaConfig, seed: int) -> Draws:
    """Draw noise and noise levels for latents of a shape (B, C, H, W).

    Always on the CPU, so that the same seed trains the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    sigmas = sample_sigmas(shape[0], config, generator)
    return Draws(noise=torch.randn(shape, generator=generator), sigmas=sigmas)
