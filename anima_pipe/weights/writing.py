"""Writing files of weights: every number in them is finite, or they are not written.

All that is saved, exported, converted, merged, extracted or baked goes through here. A number that
is not finite would be drawn as a black picture much later, and no comparison that is written
carelessly finds it: max(0.0, nan) is 0.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import BinaryIO, Final

import torch
from safetensors.torch import save  # noqa: TID251 - the one place
from torch import Tensor

from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.files import with_sorted_header, write_atomically
from anima_pipe.plain_text import in_utf8
from anima_pipe.weights.files import BYTES_PER_NUMBER, StoredTensor, listed

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The kinds of numbers that may be infinite or none, by their names in safetensors."""

STORED_NAMES: Final = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""What safetensors calls the dtypes that weights are kept in."""

WRITABLE: Final = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes in which trained tensors are written."""

CHUNK_BYTES: Final = 16 * 2**20
"""How much is copied at once of a tensor that does not change."""


_REMEDY: Final = (
    "go back to an earlier file or state; training that comes to this needs a lower learning_rate"
)
_REMEDY_IN_FP16: Final = (
    "write it in bf16 or float: fp16 ends at 65,504; what these refuse too was damaged before"
)


def require_writable(dtype: torch.dtype | None) -> None:
    """Check the dtype that tensors are to be written in; None: each in its own.

    Raises:
        ConfigError: Nothing is written in it.
    """
    if dtype is not None and dtype not in WRITABLE:
        raise ConfigError(
            f"save_precision is {dtype}", f"use one of {', '.join(map(str, WRITABLE))}"
        )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; it is whole under its name, or what was there stays.

    Args:
        path: The file; its folder is made if need be.
        tensors: On the CPU and contiguous, by name.
        metadata: For the header.

    Raises:
        CheckpointError: A number is not finite.
        OutputError: The file cannot be written.
    """
    write_atomically(path, serialized(tensors, metadata, path))


def stream_tensors(
    target: Path,
    tensors: Mapping[str, Tensor],
    called: Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file tensor by tensor: memory grows by the largest of them.

    Args:
        target: The file, which may be temporary.
        tensors: On any device, by name.
        called: What errors call the file.
        metadata: For the header.
        dtype: That they are written in; None: each in its own.

    Raises:
        CheckpointError: A number is not finite.
    """
    wide_first = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    kinds = {name: STORED_NAMES[dtype or tensors[name].dtype] for name in wide_first}
    layout = {
        name: (kind, tuple(tensors[name].shape), tensors[name].numel() * BYTES_PER_NUMBER[kind])
        for name, kind in kinds.items()
    }
    with target.open("wb") as file:
        write_header(file, layout, metadata or {})
        for name in wide_first:
            append_tensor(file, name, tensors[name].detach().to("cpu", dtype), called)


def serialized(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, path: Path
) -> bytes:
    """Return the bytes of a safetensors file; `path` is what errors call it.

    Raises:
        CheckpointError: A number is not finite.
    """
    refuse_not_finite(tensors, path)
    stated = {in_utf8(name): in_utf8(value) for name, value in (metadata or {}).items()}
    return with_sorted_header(save(dict(tensors), stated or None))


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that every number of every tensor is finite.

    Raises:
        CheckpointError: Some are not; it names their tensors.
    """
    if found := not_finite(tensors):
        raise CheckpointError(
            f"{path} is not written: not every number is finite in {listed(found)}",
            _REMEDY_IN_FP16 if any(tensors[n].dtype == torch.float16 for n in found) else _REMEDY,
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors in which not every number is finite."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor an infinity; whole numbers never do."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    # One pass, where isfinite takes ten times as long; NaN makes both ends NaN.
    low, high = torch.aminmax(tensor)
    return isfinite(low.item()) and isfinite(high.item())


def write_header(
    target: BinaryIO,
    layout: Mapping[str, tuple[str, tuple[int, ...], int]],
    metadata: Mapping[str, str],
) -> None:
    """Begin a safetensors file whose tensors follow one by one.

    Args:
        target: The file, at its start.
        layout: For each tensor, in the order in which they follow: its dtype as safetensors spells
            it, its shape, its size in bytes.
        metadata: For the header.
    """
    stated = {name: in_utf8(value) for name, value in metadata.items()}
    entries: dict[str, object] = {"__metadata__": stated}
    place = 0
    for name, (dtype, shape, size) in layout.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    target.write(len(padded).to_bytes(8, "little") + padded)


def append_tensor(target: BinaryIO, name: str, tensor: Tensor, path: Path) -> None:
    """Append a tensor's bytes to the file that `path` will be.

    Raises:
        CheckpointError: A number is not finite.
    """
    refuse_not_finite({name: tensor}, path)
    target.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def append_copy(
    target: BinaryIO, name: str, source: BinaryIO, stored: StoredTensor, path: Path
) -> None:
    """Append a tensor of another file as it is, piece by piece, to the file that `path` will be.

    Raises:
        CheckpointError: A number is not finite.
    """
    for piece in pieces(source, stored):
        if stored.dtype in DTYPES and not is_finite(numbers_in(piece, stored.dtype)):
            raise CheckpointError(
                f"{path} is not written: not every number is finite in {name} of {source.name}",
                "use a whole checkpoint; download this one again",
            )
        target.write(piece)


def pieces(source: BinaryIO, stored: StoredTensor) -> Iterable[bytearray]:
    """Yield a stored tensor's bytes, as many at once as memory may grow by."""
    source.seek(stored.start)
    left = stored.stop - stored.start
    while left:
        piece = bytearray(source.read(min(left, CHUNK_BYTES)))
        yield piece
        left -= len(piece)


def numbers_in(piece: bytearray, dtype: str) -> Tensor:
    """Return a piece's numbers, a view of it; `dtype` is one of `DTYPES`."""
    return torch.frombuffer(piece, dtype=DTYPES[dtype])


def size_in(dtype: str, stored: StoredTensor) -> int:
    """Return how many bytes a stored tensor takes in a dtype of `BYTES_PER_NUMBER`, or its own."""
    if dtype == stored.dtype:
        return stored.stop - stored.start
    return prod(stored.shape) * BYTES_PER_NUMBER[dtype]
