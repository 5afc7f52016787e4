"""A trained model as a checkpoint: a safetensors file with the names of the released ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from anima_pipe.files import published
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.weights.names import RELEASED_PREFIX
from anima_pipe.weights.writing import stream_tensors


def save_checkpoint(
    trained: WholeModel,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the whole model, what does not train included; the file is whole or not there.

    Args:
        trained: The model.
        path: The file; its folder is made if need be.
        metadata: Goes into the header.
        dtype: Of all tensors; None: what the trained ones are kept in.

    Raises:
        CheckpointError: A number is not finite.
        OutputError: The file cannot be written.
    """
    tensors = {
        f"{RELEASED_PREFIX}{name}": weight for name, weight in trained.model.named_parameters()
    }
    stated = {**(metadata or {}), "format": "pt"}
    with published(path) as unfinished:
        stream_tensors(unfinished, tensors, path, stated, dtype or trained.dtype)
    return path
