"""How a sample becomes tensors and bytes, and how stored tensors get their dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch

from anima_pipe.errors import DataError
from anima_pipe.shards.folders import Kind, StoredDtype

Value = TypeVar("Value")

STORED_DTYPES: Final[dict[StoredDtype, torch.dtype]] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}

TORCH_DTYPES: Final = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
}
"""By safetensors' names, as the sidecar has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec(Generic[Value]):
    """One kind of sample: its tensors' names, and the way there and back."""

    kind: Kind
    command: str
    """The command that fills this kind of cache."""
    names: tuple[str, ...]
    """The tensors of a sample; the first one's shape is the sample's shape."""
    pack: Callable[[Value], Mapping[str, torch.Tensor]]
    unpack: Callable[[Mapping[str, torch.Tensor]], Value]


def stored_tensors(
    key: str, tensors: Mapping[str, torch.Tensor], dtype: StoredDtype
) -> dict[str, torch.Tensor]:
    """Bring a sample's floating tensors to the cache's dtype, on the CPU.

    A sample with a value beyond fp16's range is kept in bf16 instead. That is decided per sample,
    not per shard, so that a sample's bytes do not depend on which others share its shard.

    Args:
        key: Of the sample, for the message.
        tensors: Any floating dtype and device; integers are left as they are.
        dtype: What the cache stores.

    Raises:
        DataError: A value is NaN or infinite.
    """
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    stored = _cast(on_cpu, STORED_DTYPES[dtype])
    if not _is_finite(stored) and dtype == "fp16":
        stored = _cast(on_cpu, torch.bfloat16)
    if not _is_finite(stored):
        raise DataError(
            f"the encoder gave NaN or infinite values for sample {key}",
            "run the encoder in fp32 or bf16, and check that its weights are whole",
        )
    return stored


def _cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def _is_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
