"""The proof that a written adapter file says what it should, by ComfyUI's rules."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from anima_pipe.adapters.delta import SCALES, Delta
from anima_pipe.comfy import Tensors, parameter_change, tensors_by_module
from anima_pipe.errors import CheckpointError

LEAST_GAIN: Final = 1e-4
"""By how much at least DoRA's scale changes the weight that a file is tried on: a file that lacks
it is to be told from one that has it, even where nothing was trained."""

TOLERANCES: Final = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Largest difference that saving in a dtype explains, relative to the layer's largest change:
eight of its rounding steps, for a change is a sum of products of rounded numbers."""


def verify_export(path: str | os.PathLike[str], deltas: Mapping[str, Delta]) -> float:
    """Compare a file, applied by ComfyUI's rules, with the change that was trained.

    One layer's change is in memory at a time. It is compared without the weight that it is added
    to, whose rounding would hide a difference; that of DoRA, which depends on the weight, on drawn
    weights in float64.

    Args:
        path: The file, of style comfy, kohya or diffusers.
        deltas: What was trained, by module path: `Adapter.deltas`.

    Returns:
        The largest difference of all layers, relative to the largest change of its layer.

    Raises:
        CheckpointError: It is more than rounding, or ComfyUI would pass over a tensor.
    """
    file_tensors = load_file(path)
    by_module = tensors_by_module(file_tensors, deltas.keys())
    errors = {
        module: change_error(delta, by_module.get(module, {})) for module, delta in deltas.items()
    }
    module = max(errors, key=lambda module: errors[module])
    # Scales are exact in a file of any dtype, and excuse nothing.
    dtypes = {t.dtype for key, t in file_tensors.items() if key.rpartition(".")[2] not in SCALES}
    if errors[module] > max(TOLERANCES.get(dtype, 0.0) for dtype in dtypes):
        raise CheckpointError(
            f"{path}: the change of {module} is off by {errors[module]:.1e} of its size",
            "do not use the file; report this with the command that wrote it",
        )
    return errors[module]


@torch.no_grad()
def change_error(delta: Delta, tensors: Tensors) -> float:
    """Return the difference between a delta and what a file says of its module.

    Returns:
        The largest difference, relative to the largest element of the delta's change; infinite if
        there is one although the delta changes nothing.
    """
    weights, error = trial_weights(delta), 0.0
    for name, trained in delta.weight_changes(weights).items():
        filed = parameter_change(name, weights[name], tensors)
        largest = _largest(trained)
        difference = _largest(filed - trained.cpu())
        error = max(error, difference / largest if largest else difference and math.inf)
    return error


def trial_weights(delta: Delta) -> dict[str, Tensor]:
    """Return weights on which a delta's change shows all that its tensors do.

    Returns:
        By parameter: zeros, fp32. For DoRA, whose change is a share of the weight, one in float64
        that is as large as its scale says but for a difference, half as large as what its matrices
        add: neither hides an error of the other.
    """
    zeros = {name: torch.zeros(()).expand(shape) for name, shape in delta.shapes.items()}
    if not delta.has_dora:
        return zeros
    scale = delta.file_tensors()["dora_scale"].double().cpu()
    drawn = torch.randn(delta.shapes["weight"], generator=torch.Generator().manual_seed(0)).double()
    by_row = scale.shape[0] == drawn.shape[0]
    norms = drawn.norm(dim=1 if by_row else 0, keepdim=True)
    size = scale.norm().item()
    gain = max(LEAST_GAIN, delta.change_norm() / (2 * size)) if size else LEAST_GAIN
    return {**zeros, "weight": drawn * (scale.abs() / norms / (1 + gain))}


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor, without a copy of it."""
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item())
