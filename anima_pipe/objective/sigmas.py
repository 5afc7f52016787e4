"""Noise levels: from which distribution training draws them. Sigma is 0 for clean, 1 for noise.

logit-normal, mode   Esser et al. 2024, "Scaling Rectified Flow Transformers", section 3.1
shift                the same paper, equation 23
shift by size        Black Forest Labs' FLUX: a shift that grows with the picture's tokens
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from anima_pipe.errors import ConfigError

DISTRIBUTIONS: Final = ("logit_normal", "uniform", "mode")

SIZE_SHIFT: Final = ((256, 0.5), (4096, 1.15))
"""FLUX's line through (tokens, logarithm of the shift)."""

PATCH: Final = 2
"""Side of a token, in latent pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaConfig:
    """How the noise levels of training are distributed."""

    distribution: str = "logit_normal"
    """"logit_normal" (sigmoid of a normal), "uniform" or "mode"."""
    mean: float = 0.0
    """Of the normal behind "logit_normal"; above 0 trains more on noisy latents."""
    sigmoid_scale: float = 1.0
    """Standard deviation of that normal; 1 to 1.3 is usual."""
    mode_scale: float = 1.29
    """How far "mode" is from uniform; below 0 to the ends, above 0 to the middle."""
    shift: float = 1.0
    """Pushes sigma towards noise: s -> shift s / (1 + (shift - 1) s); 1 leaves it."""
    shift_by_size: bool = False
    """Take the shift from the picture's size, as FLUX does, instead."""
    lowest: float = 0.0
    """Sigma is scaled into [lowest, highest] at the end; if they are equal, it is that."""
    highest: float = 1.0
    takes_offsets: bool = True
    """Whether samples may bring offsets of their own to the normal behind "logit_normal"."""

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
        if not 0 <= self.lowest <= self.highest <= 1:
            raise ConfigError(
                f"noise levels from {self.lowest:g} to {self.highest:g} are no range within 0 to 1",
                "set min_timestep to no more than max_timestep, both within 0 to 1000",
            )


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Push noise levels in [0, 1] towards 1 by a time shift."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def size_shift(height: int, width: int) -> float:
    """Return FLUX's shift for latents of a height and width.

    The logarithm of the shift is linear in the number of tokens.
    """
    (few, low), (many, high) = SIZE_SHIFT
    tokens = (height // PATCH) * (width // PATCH)
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def sample_sigmas(
    shape: torch.Size | tuple[int, ...],
    config: SigmaConfig,
    generator: torch.Generator,
    offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw noise levels for latents of a shape (B, C, H, W).

    Args:
        shape: Of the latents.
        config: The distribution.
        generator: The only source of randomness.
        offsets: Float32[B], added to the normal draw before it is multiplied by sigmoid_scale
            (Kohya's custom_attributes.timestep_sampling.offset); without effect where the
            configuration takes none.

    Returns:
        Float32[B] in [lowest, highest], on the generator's device.
    """
    count, _channels, height, width = shape
    drawn = _draw(count, config, generator, offsets if config.takes_offsets else None)
    shift = size_shift(height, width) if config.shift_by_size else config.shift
    return config.lowest + (config.highest - config.lowest) * shift_sigmas(drawn, shift)


def _draw(
    count: int, config: SigmaConfig, generator: torch.Generator, offsets: torch.Tensor | None
) -> torch.Tensor:
    device = generator.device
    if config.distribution == "logit_normal":
        normal = torch.randn(count, generator=generator, device=device)
        if offsets is not None:
            normal = normal + offsets.to(device)
        return torch.sigmoid(normal * config.sigmoid_scale + config.mean)
    uniform = torch.rand(count, generator=generator, device=device)
    if config.distribution == "uniform":
        return uniform
    # The paper's map of a uniform number to a time, which is 1 at the clean end of its schedule.
    bent = torch.cos(math.pi / 2 * uniform).square() - 1 + uniform
    return (uniform + config.mode_scale * bent).clamp(0, 1)
