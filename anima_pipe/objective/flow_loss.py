"""The objective: rectified flow between a clean latent (sigma 0) and noise (sigma 1).

    x_sigma = (1 - sigma) x_0 + sigma e,   velocity target = e - x_0,   loss = mean square error

(Liu et al. 2022, "Flow Straight and Fast".) All of it in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from anima_pipe.errors import ConfigError, did_you_mean
from anima_pipe.objective.noise import Noise, NoiseConfig, sample_noise
from anima_pipe.objective.sigmas import SigmaConfig, sample_sigmas

LEAST_MASK_AREA: Final = 1e-6
"""In positions: below that of any mask but an empty one, whose loss it keeps at 0."""

HUBER_SCHEDULES: Final = ("constant", "exponential", "snr")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """How a velocity is compared with its target."""

    kind: str = "l2"
    """"l2", "l1", "huber" or "smooth_l1"."""
    huber_c: float = 0.1
    """Where the Huber losses turn from square to linear, by the schedule below."""
    huber_scale: float = 1.0
    """Multiplies that."""
    huber_schedule: str = "snr"
    """"constant", or towards huber_c with more noise: "exponential" or "snr"."""
    weighting: str = "none"
    """Weight of a sample by its noise level: "none", "sigma_sqrt" or "cosmap"."""

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.kind, LOSSES, "loss_type"),
            (self.huber_schedule, HUBER_SCHEDULES, "huber_schedule"),
            (self.weighting, WEIGHTINGS, "weighting_scheme"),
        ):
            if value not in known:
                hint = did_you_mean(value, known)
                raise ConfigError(
                    f"unknown {name} {value!r}", f"{hint}use one of {', '.join(known)}"
                )
        if not self.huber_c > 0 or not self.huber_scale > 0:
            raise ConfigError("huber_c and huber_scale must be above 0", "use 0.1 and 1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Everything that the loss of a batch depends on besides the model."""

    sigmas: SigmaConfig = field(default_factory=SigmaConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """The random numbers of one batch."""

    noise: Noise
    sigmas: torch.Tensor
    """Float32[B], in [0, 1]."""


def draw(
    shape: torch.Size,
    config: ObjectiveConfig,
    seed: int,
    sigma_offsets: torch.Tensor | None = None,
) -> Draws:
    """Draw noise and noise levels for latents of a shape (B, C, H, W).

    Always on the CPU, so that the same seed trains the same on every device.

    Args:
        shape: Of the latents.
        config: What to draw from.
        seed: Of everything drawn.
        sigma_offsets: Float32[B], see `sample_sigmas`.
    """
    generator = torch.Generator().manual_seed(seed)
    sigmas = sample_sigmas(shape, config.sigmas, generator, sigma_offsets)
    return Draws(noise=sample_noise(shape, config.noise, generator), sigmas=sigmas)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return (1 - sigma) latents + sigma noise, Float32[B, C, H, W]; sigmas Float32[B]."""
    return torch.lerp(latents.float(), noise.float(), sigmas.float().view(-1, 1, 1, 1))


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the velocity from latent to noise, Float32[B, C, H, W]."""
    return noise.float() - latents.float()


def sample_losses(
    velocity: torch.Tensor,
    target: torch.Tensor,
    sigmas: torch.Tensor,
    config: LossConfig,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return each sample's loss, weighted by its noise level.

    Under a mask it is the mean over what the mask leaves, so that a small figure counts as much as
    one that fills its picture; Kohya's is that mean times the mask's area.

    Args:
        velocity: What the model predicts, Float[B, C, H, W].
        target: The same shape.
        sigmas: Float32[B].
        config: Which loss.
        masks: Float32[B, H, W] in [0, 1], how much each position counts; None: all the same. The
            loss under a mask of zeros is 0.

    Returns:
        Float32[B].
    """
    turn = huber_turn(sigmas, config).view(-1, 1, 1, 1)
    losses = LOSSES[config.kind](velocity.float() - target.float(), turn)
    if masks is None:
        means = losses.flatten(1).mean(1)
    else:
        areas = masks.flatten(1).sum(1).clamp(min=LEAST_MASK_AREA)
        means = (losses.mean(1) * masks).flatten(1).sum(1) / areas
    return means * WEIGHTINGS[config.weighting](sigmas)


def huber_turn(sigmas: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Return where the Huber losses turn linear for each sample, Float32[B].

    "exponential" falls from 1 without noise to huber_c in pure noise; "snr" takes
    (1 - c) / (1 + n)^2 + c with the ratio of noise to signal n = sigma / (1 - sigma).
    """
    match config.huber_schedule:
        case "exponential":
            turn = torch.exp(math.log(config.huber_c) * sigmas)
        case "snr":
            turn = (1 - config.huber_c) * (1 - sigmas).square() + config.huber_c
        case _:
            turn = torch.full_like(sigmas, config.huber_c)
    return turn * config.huber_scale


def _l2(error: torch.Tensor, _turn: torch.Tensor) -> torch.Tensor:
    return error.square()


def _l1(error: torch.Tensor, _turn: torch.Tensor) -> torch.Tensor:
    return error.abs()


def _huber(error: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Return Kohya's pseudo-Huber loss: the square of small errors, 2 c |e| of large ones."""
    return turn * _smooth_l1(error, turn)


def _smooth_l1(error: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Return the same over c: 2 |e| for large errors.

    2 (sqrt(e^2 + c^2) - c), written so that small errors do not cancel out.
    """
    squares = error.square()
    return 2 * squares / ((squares + turn.square()).sqrt() + turn)


def _sigma_sqrt(sigmas: torch.Tensor) -> torch.Tensor:
    """Return 1 / sigma^2, held finite at the clean end, where training hardly goes."""
    return sigmas.clamp(min=1e-3) ** -2


def _cosmap(sigmas: torch.Tensor) -> torch.Tensor:
    """Return 2 / (pi (1 - 2s + 2s^2)), the density of a cosine schedule (Esser et al. 2024)."""
    return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas.square()))


LOSSES: Final[Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "l2": _l2,
    "l1": _l1,
    "huber": _huber,
    "smooth_l1": _smooth_l1,
}
"""(error Float[B, C, H, W], turn Float[B, 1, 1, 1]) -> loss of every element."""

WEIGHTINGS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "none": torch.ones_like,
    "sigma_sqrt": _sigma_sqrt,
    "cosmap": _cosmap,
}
"""Noise levels Float[B] -> weights Float[B]."""
