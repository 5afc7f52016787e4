"""The sidecar of a shard, `<shard>.index.json`: where every member lies, and its checksum.

It holds columns, one entry per sample, so that a cache of 100,000 samples opens in a blink:

    {"version": 1, "tar": "w-000000.tar", "tar_bytes": 268000256,
     "keys": ["0f3a...", ...],
     "safetensors": {"offset": [...], "length": [...], "crc32": [...], "xxh3": [...]},
     "json":        {"offset": [...], "length": [...], "crc32": [...]},
     "tensors": {"latent": {"dtype": ["F16", ...], "shape": [[16, 96, 64], ...], "offset": [...]}},
     "damaged": {}, "checksum": "0f3a51c2"}

Offsets count from the start of the tar; a tensor's offset is that of its first value. `damaged`
says of keys that are in the tar but not whole, or not what is trained on, what is wrong: readers
treat them as absent, so the next caching run encodes them again. A sidecar is a function of its
tar's bytes: it can be rebuilt.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from anima_pipe.errors import OutputError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.shards.checksum import has_its_checksum, with_checksum
from anima_pipe.shards.fitness import DAMAGED, WrongSampleError, fitting_places, misfit
from anima_pipe.shards.index import MemberColumns, Problem, ShardIndex, TensorColumns
from anima_pipe.shards.sample import METADATA, PAYLOAD, is_intact
from anima_pipe.shards.tar import Span, read_members

INDEX_VERSION: Final = 1
INDEX_SUFFIX: Final = ".index.json"


class UnfitIndexError(ValueError):
    """A sidecar that is missing, unreadable or of another tar; the text completes "it ..."."""


def index_path(tar: Path) -> Path:
    """Return the path of a shard's sidecar."""
    return tar.with_suffix(INDEX_SUFFIX)


def load_index(tar: Path, tar_bytes: int) -> tuple[ShardIndex, Problem | None]:
    """Read a shard's sidecar; where it is missing or does not fit, rebuild it from the tar.

    Args:
        tar: The shard.
        tar_bytes: Its size on disk.

    Returns:
        The index, and why it had to be rebuilt, if so.
    """
    try:
        return read_index(tar, tar_bytes), None
    except UnfitIndexError as error:
        problem = Problem(shard=tar, reason=f"{error}; it was rebuilt from the tar")
        return rebuild_index(tar), problem


def read_index(tar: Path, tar_bytes: int) -> ShardIndex:
    """Read a shard's sidecar; the shard itself need not be there.

    Args:
        tar: The shard.
        tar_bytes: Its size.

    Raises:
        UnfitIndexError: There is none, it cannot be read, or it is another tar's.
    """
    try:
        index = _from_json(parsed_json(_checked(index_path(tar).read_bytes())))
    except FileNotFoundError as error:
        raise UnfitIndexError("had no sidecar") from error
    except UnfitIndexError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnfitIndexError("had a damaged sidecar") from error
    if (index.tar, index.tar_bytes) != (tar.name, tar_bytes):
        raise UnfitIndexError("had the sidecar of another tar")
    return index


def _checked(content: bytes) -> bytes:
    if not has_its_checksum(content):
        raise ValueError("not its checksum")
    return content


def rebuild_index(tar: Path) -> ShardIndex:
    """Make a shard's index from the tar itself, checking every sample, and write it if possible."""
    index = ShardIndex(tar=tar.name, tar_bytes=tar.stat().st_size)
    places: dict[str, dict[str, Span]] = {}
    for name, span in read_members(tar):
        key, _, extension = name.partition(".")
        places.setdefault(key, {})[extension] = span
    with tar.open("rb") as file:
        for key, spans in places.items():
            members: dict[str, bytes] = {}
            for extension, span in spans.items():
                file.seek(span.offset)
                members[extension] = file.read(span.length)
            try:
                _add_checked(index, key, spans, members)
            except WrongSampleError as error:
                index.damaged[key] = str(error)
    with suppress(OutputError):  # a cache on a read-only disk can be read, it only opens slower
        write_index(tar, index)
    return index


def write_index(tar: Path, index: ShardIndex) -> None:
    """Write a shard's sidecar, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_atomically(index_path(tar), with_checksum(_json_text(_columns(index)).encode()))


def _add_checked(
    index: ShardIndex, key: str, spans: Mapping[str, Span], members: Mapping[str, bytes]
) -> None:
    """Append a sample that is whole and what is trained on.

    Raises:
        WrongSampleError: It is not.
    """
    if not {PAYLOAD, METADATA} <= members.keys():
        raise WrongSampleError("damaged: a part of it is missing")
    if not is_intact(members[METADATA], members[PAYLOAD]):
        raise WrongSampleError(DAMAGED)
    fitting_places(members[PAYLOAD])
    try:
        index.add(key, spans, members)
    except ValueError as error:
        raise WrongSampleError("unfit: it holds other tensors than the shard's first") from error


def _json_text(value: object) -> str:
    """Return JSON, made a column at a time: as single texts numbers take much more room."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, object]", value)
        return (
            "{"
            + ",".join(f"{json.dumps(name)}:{_json_text(entry)}" for name, entry in table.items())
            + "}"
        )
    column = cast("array[int]", value).tolist() if isinstance(value, array) else value
    return json.dumps(column, separators=(",", ":"))


def _columns(index: ShardIndex) -> dict[str, object]:
    return {
        "version": INDEX_VERSION,
        "tar": index.tar,
        "tar_bytes": index.tar_bytes,
        "keys": index.keys,
        PAYLOAD: {**_member_columns(index.payloads), "xxh3": index.payload_hashes},
        METADATA: _member_columns(index.metadata),
        "tensors": {
            name: {
                "dtype": columns.dtype,
                "shape": columns.shape,
                "offset": columns.offset,
            }
            for name, columns in index.tensors.items()
        },
        "damaged": index.damaged,
    }


def _from_json(fields: dict[str, Any]) -> ShardIndex:
    """Read a sidecar's columns.

    Raises:
        ValueError: Another version, columns of unequal length, or places that the tar does not
            have. A column that is missing or of another kind raises KeyError or TypeError.
    """
    if fields["version"] != INDEX_VERSION:
        raise ValueError(f"sidecar version {fields['version']}")
    index = ShardIndex(
        tar=fields["tar"],
        tar_bytes=fields["tar_bytes"],
        keys=list(fields["keys"]),
        payloads=_read_member_columns(fields[PAYLOAD]),
        payload_hashes=array("Q", fields[PAYLOAD].get("xxh3", ())),
        metadata=_read_member_columns(fields[METADATA]),
        tensors={name: _read_tensor_columns(lists) for name, lists in fields["tensors"].items()},
        damaged=_read_damaged(fields["damaged"]),
    )
    tensors = index.tensors.values()
    columns = [c for m in (index.payloads, index.metadata) for c in (m.offset, m.length, m.crc32)]
    columns += [column for t in tensors for column in (t.dtype, t.shape, t.offset)]
    if index.payload_hashes:
        columns.append(index.payload_hashes)
    if any(len(column) != len(index.keys) for column in columns):
        raise ValueError("columns of unequal length")
    if not all(_lie_within(m, index.tar_bytes) for m in (index.payloads, index.metadata)):
        raise ValueError("members beyond the tar")
    for name, tensor in index.tensors.items():
        for dtype, shape in set(zip(tensor.dtype, tensor.shape, strict=True)):
            if wrong := misfit(name, dtype, shape):
                raise UnfitIndexError(f"had a sidecar that says: {wrong}")
    return index


def _lie_within(columns: MemberColumns, tar_bytes: int) -> bool:
    """Tell whether members can be where they are said to be; who reads one makes room for it."""
    import numpy as np  # here: a command that only looks for caches has no need of it

    offset, length = np.array(columns.offset, np.int64), np.array(columns.length, np.int64)
    return bool(np.all((offset >= 0) & (length >= 0) & (length <= tar_bytes - offset)))


def _read_damaged(entries: Mapping[str, str] | list[str]) -> dict[str, str]:
    # Earlier sidecars do not say why.
    return dict(entries) if isinstance(entries, dict) else dict.fromkeys(entries, DAMAGED)


def _member_columns(columns: MemberColumns) -> dict[str, array[int]]:
    return {"offset": columns.offset, "length": columns.length, "crc32": columns.crc32}


def _read_member_columns(lists: dict[str, list[int]]) -> MemberColumns:
    return MemberColumns(
        array("q", lists["offset"]), array("q", lists["length"]), array("q", lists["crc32"])
    )


def _read_tensor_columns(lists: dict[str, list[Any]]) -> TensorColumns:
    # Many samples share a shape and all share a dtype: one object for each, not 100,000.
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    return TensorColumns(
        [dtypes.setdefault(dtype, dtype) for dtype in lists["dtype"]],
        [shapes.setdefault(shape, shape) for shape in map(tuple, lists["shape"])],
        array("q", lists["offset"]),
    )
