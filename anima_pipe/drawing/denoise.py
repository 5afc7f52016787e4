"""From noise to a latent: Euler steps along the learned velocity, as inference programs take them.

ComfyUI's Anima templates: schedule "simple" over the flow with shift 3.0, 30 steps, guidance 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from anima_pipe.objective.sigmas import shift_sigmas

SCHEDULE_POINTS = 1000
"""Entries of the table of noise levels from which the "simple" schedule picks."""

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(latents Float[1, C, H, W], sigma Float[1]) -> velocity of the same shape as the latents."""


def simple_schedule(steps: int, shift: float = 3.0) -> torch.Tensor:
    """Return the noise levels of ComfyUI's "simple" schedule, Float32[steps + 1], 1 down to 0.

    A table of 1,000 shifted levels is walked from its end in equal strides, rounded down.
    """
    table = shift_sigmas(torch.arange(1, SCHEDULE_POINTS + 1) / SCHEDULE_POINTS, shift)
    stride = SCHEDULE_POINTS / steps
    picked = [table[-(1 + int(index * stride))] for index in range(steps)]
    return torch.stack([*picked, torch.zeros(())])


def euler(noise: torch.Tensor, sigmas: torch.Tensor, velocity: Velocity) -> torch.Tensor:
    """Integrate from pure noise down to sigma 0.

    Args:
        noise: Float32[1, C, H, W], the latent at sigmas[0].
        sigmas: Float32[steps + 1], falling, ending at 0.
        velocity: The model, guided or not.

    Returns:
        The clean latent, Float32[1, C, H, W].
    """
    latents = noise
    for now, after in itertools.pairwise(sigmas):
        step = velocity(latents, now.expand(latents.shape[0]))
        latents = latents + (after - now) * step.float()
    return latents


def guided(positive: Velocity, negative: Velocity, scale: float) -> Velocity:
    """Return classifier-free guidance: negative + scale (positive - negative).

    A scale of 1 is the positive velocity alone, at half the cost.
    """
    if scale == 1.0:
        return positive

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        away = negative(latents, sigma).float()
        return away + scale * (positive(latents, sigma).float() - away)

    return velocity
