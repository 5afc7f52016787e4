"""How a sample becomes tensors and bytes, and how stored tensors get their dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch

from anima_pipe.errors import DataError
from anima_pipe.shards.contents import TENSORS
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
    """One kind of sample: the way from a value to tensors and back."""

    kind: Kind
    command: str
    """The command that fills this kind of cache."""
    pack: Callable[[Value], Mapping[str, torch.Tensor]]
    unpack: Callable[[Mapping[str, torch.Tensor]], Value]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of a sample; the first one's shape is the sample's shape."""
        return TENSORS[self.kind]


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
    floats = {n: t.detach().cpu().float() for n, t in tensors.items() if t.is_floating_point()}
    target = STORED_DTYPES[dtype]
    if dtype == "fp16" and not _all_fit(floats, target):
        target = torch.bfloat16
    if not _all_fit(floats, target):
        raise DataError(
            f"the encoder gave NaN or infinite values for sample {key}",
            "check that its weights are whole: fetch or copy their file again",
        )
    return {
        name: (floats[name].to(target) if name in floats else tensor.detach().cpu()).contiguous()
        for name, tensor in tensors.items()
    }


def _all_fit(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> bool:
    """Tell whether a dtype can hold every value; none can hold NaN here."""
    limit = torch.finfo(dtype).max
    for tensor in tensors.values():
        if tensor.numel():
            # One pass, where isfinite takes ten times as long; NaN makes both ends NaN.
            low, high = torch.aminmax(tensor)
            if not (-limit <= low.item() and high.item() <= limit):
                return False
    return True
