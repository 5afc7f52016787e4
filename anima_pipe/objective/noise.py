"""The noise that latents are mixed with, plain or changed as some trainers do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anima_pipe.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """What is done to plain Gaussian noise; nothing by default."""

    offset: float = 0.0
    """Strength of a number added to each whole channel (noise_offset); about 0.05."""
    offset_random: bool = False
    """Draw that strength anew for every batch, from 0 to `offset`."""
    multires_iterations: int = 0
    """Layers of coarser noise added (multires_noise_iterations); 6 to 10."""
    multires_discount: float = 0.3
    """Strength of each layer relative to the one before."""
    input_gamma: float = 0.0
    """Strength of further noise on the model's input alone (ip_noise_gamma); about 0.1."""
    input_gamma_random: bool = False

    def __post_init__(self) -> None:
        for name in ("offset", "multires_iterations", "multires_discount", "input_gamma"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} of the noise is {getattr(self, name)}", "use 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise of one batch, all Float32[B, C, H, W]."""

    target: torch.Tensor
    """What the velocity leads to."""
    input: torch.Tensor
    """What the model's input is mixed with; the same unless input_gamma is set."""


def sample_noise(
    shape: torch.Size | tuple[int, ...], config: NoiseConfig, generator: torch.Generator
) -> Noise:
    """Draw the noise for latents of a shape (B, C, H, W), on the generator's device."""
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if config.offset:
        strength = _strength(config.offset, generator, drawn=config.offset_random)
        channels = (*shape[:2], 1, 1)
        noise = noise + strength * torch.randn(channels, generator=generator)
    if config.multires_iterations:
        noise = _with_coarser_layers(noise, config, generator)
    if not config.input_gamma:
        return Noise(target=noise, input=noise)
    gamma = _strength(config.input_gamma, generator, drawn=config.input_gamma_random)
    return Noise(target=noise, input=noise + gamma * torch.randn(shape, generator=generator))


def _strength(strength: float, generator: torch.Generator, *, drawn: bool) -> float | torch.Tensor:
    return strength * torch.rand((), generator=generator) if drawn else strength


def _with_coarser_layers(
    noise: torch.Tensor, config: NoiseConfig, generator: torch.Generator
) -> torch.Tensor:
    """Add noise at ever coarser resolutions, and bring the sum back to unit variance.

    (Kristian Wolf's multi-resolution noise: each layer is 2 to 4 times coarser than the last, down
    to the first that has but one row or column.)
    """
    height, width = noise.shape[2:]
    for layer in range(config.multires_iterations):
        factor = (2 + 2 * torch.rand((), generator=generator).item()) ** layer
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn((*noise.shape[:2], *size), generator=generator)
        spread = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        noise = noise + spread * config.multires_discount**layer
        if 1 in size:
            break
    return noise / noise.std()
