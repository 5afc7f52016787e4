"""Files of weights: headers, checked, and tensors, mapped or copied without a second copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

from anima_pipe.errors import CheckpointError
from anima_pipe.files import refuse_endless
from anima_pipe.plain_text import parsed_json

if TYPE_CHECKING:
    import torch

BYTES_PER_NUMBER = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The kinds of numbers that can be trained on; files of other kinds are quantised."""

# More than any real header, less than the garbage that eight bytes of another format amount to.
MAX_HEADER_BYTES = 100_000_000
CHUNK_BYTES = 16 * 2**20
"""How much of a file is in memory at once, beside the tensors that it is copied to."""
LISTED_NAMES = 3
"""How many tensors an error names before it says how many more there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    """As safetensors spells it: F32, BF16, F8_E4M3 ..."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a safetensors file holds, without reading them.

    Raises:
        CheckpointError: There is no such file, or it is not a whole safetensors file.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file", _what_is_inside(path))
        refuse_endless(path)
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            start = file.read(64)
            if not start.startswith(b"{") or header_bytes > MAX_HEADER_BYTES:
                file.seek(0)
                raise _not_safetensors(path, file.read(64))
            header = start + file.read(max(0, header_bytes - len(start)))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "correct the path") from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "check its permissions and its disk"
        ) from error
    if 8 + header_bytes > file_bytes:
        raise _truncated(path, 8 + header_bytes, file_bytes)
    tensors = _parse(path, header[:header_bytes])
    whole_bytes = max((tensor.stop for tensor in tensors.values()), default=8 + header_bytes)
    if whole_bytes > file_bytes:
        raise _truncated(path, whole_bytes, file_bytes)
    _refuse_what_the_library_refuses(path)
    return tensors


def copy_tensors(
    path: Path, stored: Mapping[str, StoredTensor], targets: Mapping[str, torch.Tensor]
) -> None:
    """Copy tensors from a file into tensors that exist, in the dtype and device of those.

    Memory grows by no more than a chunk beyond the targets. That holds for the process's own
    memory, which decides whether a machine runs out, and for its resident size with mapped pages,
    which is what `top` shows: only one piece of the file is mapped at a time.

    Args:
        path: The file.
        stored: What of it to copy, as `read_header` gave it.
        targets: Contiguous tensors of the same names and shapes.
    """
    with path.open("rb") as file:
        for name, tensor in sorted(stored.items(), key=lambda item: item[1].start):
            bytes_per_number = BYTES_PER_NUMBER[tensor.dtype]
            start = tensor.start
            for target in targets[name].detach().view(-1).split(CHUNK_BYTES // bytes_per_number):
                _copy_piece(file, tensor.dtype, start, target)
                start += target.numel() * bytes_per_number


def mapped_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pth file, mapped: nothing is read until used.

    Raises:
        CheckpointError: The file is missing, damaged, or not a file of tensors.
    """
    if path.suffix in _PICKLED and path.is_file():
        return _unpickled(path)
    read_header(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error})", "Download or copy it again."
        ) from error


def landed(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy a mapped tensor to where it is used, images' weights in channels_last order."""
    import torch

    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=dtype, device=device, memory_format=order).copy_(tensor)


def check_names(
    path: Path,
    what: str,
    remedy: str,
    *,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare the tensors that a network needs, by name and shape, with those that a file has.

    Raises:
        CheckpointError: Some are missing, too many or of another shape; it names them.
    """
    problems: list[str] = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"lacks {listed(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"has unexpected {listed(unexpected)}")
    shapes = [
        f"{name} as {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if shapes:
        problems.append(f"has {listed(shapes)}")
    if problems:
        raise CheckpointError(f"{path}, as {what}, {' and '.join(problems)}", remedy)


def listed(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    everything = list(names)
    more = len(everything) - LISTED_NAMES
    first = ", ".join(everything[:LISTED_NAMES]) or "none"
    return f"{first} and {more} more" if more > 0 else first


def _copy_piece(file: BinaryIO, dtype: str, start: int, target: torch.Tensor) -> None:
    """Fill a vector from the numbers that begin at a byte of a file."""
    import torch

    dtypes = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    if not target.numel():
        return  # An empty mapping would be an error.
    map_start = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = start - map_start + target.numel() * BYTES_PER_NUMBER[dtype]
    # Copy on write, for torch warns of memory that it may not write to; nothing is written.
    with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=map_start) as mapped:
        numbers = torch.frombuffer(
            mapped, dtype=dtypes[dtype], count=target.numel(), offset=start - map_start
        )
        target.copy_(numbers)
        del numbers  # It holds the mapping open.


_PICKLED = (".pth", ".pt", ".ckpt")


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        # weights_only refuses anything that could run code.
        loaded: object = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole torch file of tensors", "Give the .safetensors file instead."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(x) for x in loaded.values()):
        raise CheckpointError(
            f"{path} holds other things than tensors", "Give the .safetensors file instead."
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _parse(path: Path, header: bytes) -> dict[str, StoredTensor]:
    data_start = 8 + len(header)
    try:
        entries = parsed_json(header, object_pairs_hook=_each_once)
        entries.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=data_start + entry["data_offsets"][0],
                stop=data_start + entry["data_offsets"][1],
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the header of {path} is damaged: {error}", "Download the file again."
        ) from error
    for name, tensor in tensors.items():
        size = BYTES_PER_NUMBER.get(tensor.dtype)
        wrong_size = size and tensor.stop - tensor.start != size * prod(tensor.shape)
        if wrong_size or tensor.start < data_start:
            raise CheckpointError(
                f"the header of {path} is damaged: the bytes of {name} do not fit its shape",
                "Download the file again.",
            )
    return tensors


def _refuse_what_the_library_refuses(path: Path) -> None:
    """Leave the last word to the library: other programs read a file as it does.

    Raises:
        CheckpointError: It refuses the file, for gaps between tensors, which could hide others.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise CheckpointError(
            f"the header of {path} is damaged: {error}", "Download the file again."
        ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; two entries of one name, of which one would be lost, are damage."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(f"a name twice among {listed(name for name, _value in pairs)}")
    return entries


def _truncated(path: Path, whole_bytes: int, file_bytes: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated: {file_bytes:,} of {whole_bytes:,} bytes",
        "Download or copy it again; the transfer did not finish.",
    )


def _not_safetensors(path: Path, start: bytes) -> CheckpointError:
    for magic, kind, remedy in _OTHER_FORMATS:
        if start.lstrip().lower().startswith(magic):
            return CheckpointError(f"{path} is {kind}, not a safetensors file", remedy)
    if not start:
        return CheckpointError(f"{path} is empty", "Download it again.")
    return CheckpointError(
        f"{path} is not a safetensors file", "Give the .safetensors file of the release."
    )


_CONVERT = "Give the .safetensors file of the release; this program runs no pickles."
_OTHER_FORMATS = (
    (b"pk\x03\x04", "a PyTorch pickle (.pt, .pth, .ckpt)", _CONVERT),
    (b"\x80", "a PyTorch pickle (.pt, .pth, .ckpt)", _CONVERT),
    (b"gguf", "a GGUF file", "Give the .safetensors file of the release; GGUF is quantised."),
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull`, or download the file."),
    (b"<!doctype", "a web page", "Download the file itself, not the page about it."),
    (b"<html", "a web page", "Download the file itself, not the page about it."),
)


def _what_is_inside(folder: Path) -> str:
    inside = sorted(file.name for file in folder.glob("*.safetensors"))
    if not inside:
        return "Give the .safetensors file itself."
    return f"Give the file itself, such as {folder / inside[0]}."
