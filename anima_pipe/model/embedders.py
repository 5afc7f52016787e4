"""What surrounds the blocks: latents to patches and back, and sigma to what the blocks are told."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import nn

from anima_pipe.model.config import PATCH


class PatchEmbedding(nn.Module):
    """Patches of 2 x 2 latent pixels, flattened and projected."""

    def __init__(self, patch_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(ToPatches(patch_width), nn.Linear(patch_width, width, bias=False))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return tokens, Float[B, H/2 x W/2, width], row by row, from Float[B, 16, H, W]."""
        return self.proj(latents)


class ToPatches(nn.Module):
    """Latents cut into patches, each flattened as (channel, row, column)."""

    def __init__(self, patch_width: int) -> None:
        super().__init__()
        self.patch_width = patch_width

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return Float[B, H/2 x W/2, patch width] from Float[B, 16, H, W].

        Where the model has a padding-mask channel, its four zeros end each patch.
        """
        grid = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.pad(patches, (0, self.patch_width - patches.shape[-1]))


def from_patches(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put patches back: Float[B, N, 64] -> Float[B, 16, H, W].

    The model's output orders a patch as (row, column, channel), unlike its input.
    """
    grid = patches.unflatten(-1, (PATCH, PATCH, -1)).unflatten(1, (rows, columns))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class SigmaWaves(nn.Module):
    """Sinusoid of sigma, the cosines first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = width // 2

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return Float32[B, width] from sigma, Float[B], which is not scaled."""
        steps = torch.arange(self.frequencies, device=sigma.device, dtype=torch.float32)
        frequencies = torch.exp(steps * (-math.log(10000.0) / self.frequencies))
        angles = sigma.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeModulation(nn.Module):
    """The part of the modulations that all blocks share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """Return Float[B, 3 x width] from the waves of sigma, Float[B, width]."""
        return self.linear_2(F.silu(self.linear_1(waves)))
