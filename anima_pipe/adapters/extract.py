"""The adapter that leads from one checkpoint to another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anima_pipe.adapters.combine import Size, lora_of_matrix
from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.difference import DifferenceDelta
from anima_pipe.adapters.lokr import LokrConfig, LokrDelta, factorize
from anima_pipe.adapters.low_rank import leading_factors
from anima_pipe.adapters.norm import NormDelta
from anima_pipe.errors import CheckpointError
from anima_pipe.weights.files import (
    BYTES_PER_NUMBER,
    StoredTensor,
    copy_tensors,
    read_header,
)
from anima_pipe.weights.names import PREFIXES, usable
from anima_pipe.weights.writing import is_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What was found between two checkpoints."""

    deltas: dict[str, Delta]
    left_out: list[str]
    """Tensors that differ and that no adapter kind can express."""
    depths: dict[str, int]
    """The numbers of layers of the model, by the path of their list."""


@torch.no_grad()
def extract_adapter(
    base: Path, tuned: Path, size: Size, *, lokr_factor: int | None = None
) -> Extracted:
    """Return the adapter that changes one checkpoint into another, nearly.

    One pair of tensors is in memory at a time. Layers that are the same are left out.

    Args:
        base: The checkpoint to start from.
        tuned: The one to arrive at.
        size: Of the LoRA of each linear layer.
        lokr_factor: Give the best LoKr of whole factors instead, of this factor; size is not used.

    Raises:
        CheckpointError: A file cannot be read or is quantised, or they are of two models.
        ConfigError: There is no such factor.
    """
    first, second = _transformer_tensors(base), _transformer_tensors(tuned)
    other = sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or first[name].shape != second[name].shape
    )
    if other:
        raise CheckpointError(
            f"{base} and {tuned} differ in {len(other)} tensors' names or shapes: "
            f"{', '.join(other[:5])}",
            "give two checkpoints of one model, both with its text adapter or both without",
        )
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, Delta] = {}
    biases: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, stored in first.items():
        change = read_tensor(tuned, second[name]) - read_tensor(base, stored)
        module, _, parameter = name.rpartition(".")
        if not is_finite(change):
            raise CheckpointError(
                f"not every number is finite in {name} of {base} or {tuned}, or they differ by too "
                "much",
                "give two whole checkpoints",
            )
        if not change.any():
            continue
        if parameter == "bias" and change.ndim == 1:
            biases[module] = change
        elif parameter != "weight" or change.ndim > 2:
            left_out.append(name)
        elif change.ndim == 1:
            deltas[module] = NormDelta(change, None)
        elif lokr_factor is None:
            deltas[module] = lora_of_matrix(change, size, generator)
        else:
            deltas[module] = nearest_lokr(change, lokr_factor, generator)
    for module, change in biases.items():
        deltas.setdefault(module, DifferenceDelta(None, None)).bias = nn.Parameter(change)
    return Extracted(deltas=deltas, left_out=left_out, depths=depths_of(first))


def nearest_lokr(change: Tensor, factor: int, generator: torch.Generator) -> LokrDelta:
    """Return the LoKr of two whole factors nearest to a change.

    With the blocks of the change as rows, a Kronecker product is a matrix of rank 1 (Van Loan and
    Pitsianis, 1993).

    Args:
        change: Float32[out, in].
        factor: As lokr_factor.
        generator: For the approximation of rank 1.

    Raises:
        ConfigError: There is no such factor.
    """
    config = LokrConfig(rank=1, lokr_factor=factor)
    (out_l, out_k), (in_m, in_n) = (factorize(size, factor) for size in change.shape)
    blocks = change.view(out_l, out_k, in_m, in_n).transpose(1, 2).reshape(out_l * in_m, -1)
    up, down = leading_factors(blocks, 1, generator)
    first, second = up.reshape(out_l, in_m), down.reshape(out_k, in_n)
    return LokrDelta([first], [second], config)


def read_tensor(path: Path, stored: StoredTensor) -> Tensor:
    """Return one tensor of a file in fp32.

    Raises:
        CheckpointError: It is quantised.
    """
    if stored.dtype not in BYTES_PER_NUMBER:
        raise CheckpointError(
            f"{path} holds tensors of type {stored.dtype}", "use a file that is not quantised"
        )
    tensor = torch.empty(stored.shape)
    copy_tensors(path, {"": stored}, {"": tensor})
    return tensor


def without_prefix(name: str) -> str:
    """Return a checkpoint's name of a tensor as the released model has it."""
    return name.removeprefix(next(p for p in PREFIXES if name.startswith(p)))


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Return the lengths of a model's lists of layers, of the names of its tensors."""
    lengths: dict[str, int] = {}
    for name in names:
        if match := re.match(r"((?:.*\.)?blocks)\.(\d+)\.", name):
            lengths[match[1]] = max(lengths.get(match[1], 0), int(match[2]) + 1)
    return lengths


def _transformer_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint's transformer by their names without a prefix.

    Raises:
        CheckpointError: The file cannot be read, or is quantised.
    """
    stored = read_header(path)
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in stored)), "")
    own = {n.removeprefix(prefix): tensor for n, tensor in stored.items() if n.startswith(prefix)}
    return usable(path, own)
