"""A pass of the model over a batch: everything on the device first, then velocity and losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anima_pipe.objective.flow_loss import (
    Draws,
    LossConfig,
    add_noise,
    sample_losses,
    velocity_target,
)
from anima_pipe.records import Batch, PaddedText
from anima_pipe.transfer import on_device


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedBatch:
    """What one forward pass and its losses need, all of it on the model's device."""

    noisy: torch.Tensor
    """Float[B, C, H, W] in the model's dtype: the latents mixed with noise."""
    target: torch.Tensor
    """Float32[B, C, H, W]: the velocity to predict."""
    sigmas: torch.Tensor
    """Float32[B], in [0, 1]."""
    text: PaddedText
    weights: torch.Tensor
    """Float32[B]: factor of each sample's loss."""
    masks: torch.Tensor | None
    """Float32[B, H, W] in [0, 1]; None: every position counts the same."""


def placed(batch: Batch, draws: Draws, device: torch.device, dtype: torch.dtype) -> PlacedBatch:
    """Mix a batch with its noise on the device; the processor does not wait for it.

    Args:
        batch: On the CPU, in the cache's dtypes.
        draws: Its noise and noise levels, on the CPU.
        device: Of the model.
        dtype: Of what is fed to the model.
    """
    latents = on_device(batch.latents, device, torch.float32)
    sigmas = on_device(draws.sigmas, device)
    noise = draws.noise
    towards = on_device(noise.target, device)
    mixed_in = towards if noise.input is noise.target else on_device(noise.input, device)
    return PlacedBatch(
        noisy=add_noise(latents, mixed_in, sigmas).to(dtype),
        target=velocity_target(latents, towards),
        sigmas=sigmas,
        text=batch.text.to(device, dtype),
        weights=on_device(batch.weights, device),
        masks=None if batch.masks is None else on_device(batch.masks, device, torch.float32),
    )


def pass_velocity(
    module: torch.nn.Module, noisy: torch.Tensor, sigmas: torch.Tensor, text: PaddedText
) -> torch.Tensor:
    """Run the model forward and return the velocity, Float[B, C, H, W] in the model's dtype.

    Args:
        module: forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask) -> velocity.
        noisy: Float[B, C, H, W] in the model's dtype.
        sigmas: Float32[B].
        text: In the model's dtype, on its device as the others.
    """
    return module(noisy, sigmas, text.qwen_hidden, text.t5_ids, text.qwen_mask, text.t5_mask)


def pass_losses(module: torch.nn.Module, batch: PlacedBatch, config: LossConfig) -> torch.Tensor:
    """Run the model forward and return each sample's loss, Float32[B], not yet weighted.

    Args:
        module: As in `pass_velocity`.
        batch: On its device.
        config: Which loss.
    """
    velocity = pass_velocity(module, batch.noisy, batch.sigmas, batch.text)
    return sample_losses(velocity, batch.target, batch.sigmas, config, batch.masks)
