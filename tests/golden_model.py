"""The golden transformers, for tests that need a small model or the numbers it must give."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from anima_pipe.model import AnimaTransformer
from anima_pipe.model.config import config_from_shapes

GOLDEN = Path(__file__).parent / "golden"


def read_golden(name: str) -> dict[str, torch.Tensor]:
    """Return all tensors of golden/anima_<name>.safetensors; weights have the prefix `w.`."""
    return load_file(GOLDEN / f"anima_{name}.safetensors")


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a golden transformer under the checkpoint's names."""
    tensors = read_golden(name)
    return {key[2:]: tensor for key, tensor in tensors.items() if key.startswith("w.")}


def golden_transformer(name: str) -> AnimaTransformer:
    """Return a golden transformer, fp32 on the CPU."""
    weights = golden_weights(name)
    model = AnimaTransformer(config_from_shapes({k: tuple(w.shape) for k, w in weights.items()}))
    model.load_state_dict(weights)
    return model


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest magnitude that is expected."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
