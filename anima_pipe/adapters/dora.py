"""DoRA: the norms of a weight's rows or columns train apart from it (Liu et al., arXiv:2402.09353).

The changed weight is (W + D) * scale / norm. ComfyUI, for which files are made, takes for a scale
per row the norms of W, and for one per column those of W + D. What it will apply is what trains.
PEFT takes the norms of W + D for rows too: a scale of its files is made one of ComfyUI's, with the
same weight, as soon as the base is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from anima_pipe.errors import CheckpointError

SMALLEST_NORM: Final = torch.finfo(torch.float32).eps
"""Added to every norm, as ComfyUI does."""


def is_by_row(scale: Tensor, weight_shape: Sequence[int]) -> bool:
    """Tell whether a scale is one of rows, (out, 1), as ComfyUI decides it."""
    return scale.shape[0] == weight_shape[0]


def weight_norm(weight: Tensor, *, by_row: bool) -> Tensor:
    """Return the norms that a scale is compared with.

    Args:
        weight: Float32[out, in].
        by_row: One of each row, else of each column.

    Returns:
        Float32[out, 1] or Float32[1, in], none of them zero.
    """
    return weight.norm(dim=1 if by_row else 0, keepdim=True) + SMALLEST_NORM


def dora_gain(weight: Tensor, change: Tensor, scale: Tensor, *, of_changed: bool = False) -> Tensor:
    """Return what weight + change is multiplied by.

    Args:
        weight: Float32[out, in], the base's.
        change: Float32[out, in], unscaled; not looked at for a scale of rows, as ComfyUI has it.
        scale: Float32[out, 1] or Float32[1, in].
        of_changed: Whether a scale of rows goes with the norms of weight + change, as PEFT has it.

    Returns:
        In scale's shape.
    """
    by_row = is_by_row(scale, weight.shape)
    compared = weight if by_row and not of_changed else weight + change
    return scale / weight_norm(compared, by_row=by_row)


def comfyui_scale(weight: Tensor, change: Tensor, scale: Tensor) -> Tensor:
    """Return the scale of rows under which ComfyUI makes the weight that PEFT makes under another.

    Args:
        weight: Float32[out, in], the base's.
        change: Float32[out, in], unscaled.
        scale: PEFT's, Float32[out, 1].
    """
    gain = dora_gain(weight, change, scale, of_changed=True)
    return gain * weight_norm(weight, by_row=True)


def check_dora_scale(scale: Tensor, weight_shape: Sequence[int]) -> None:
    """Check that a file's scale goes with its weight.

    Raises:
        CheckpointError: It has neither one number per row nor one per column.
    """
    outputs, inputs = weight_shape
    expected = (outputs, 1) if is_by_row(scale, weight_shape) else (1, inputs)
    if scale.shape != expected:
        raise CheckpointError(
            f"dora_scale has shape {tuple(scale.shape)} beside a change of {tuple(weight_shape)}",
            "use the file as its trainer wrote it",
        )
