"""What is a safetensors file is for its library to say: no reader of ours believes more."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from anima_pipe.adapters.reading import read_adapter_file
from anima_pipe.errors import CheckpointError
from anima_pipe.shards.sample import tensor_places
from anima_pipe.weights.files import read_header


def content(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def written(entries: dict[str, Any], data: int, encoding: str = "utf-8") -> bytes:
    return content(json.dumps(entries).encode(encoding), bytes(data))


def tensor(begin: int, end: int, shape: Any = None, dtype: str = "F32", **more: Any) -> Any:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


DOUBTFUL = {
    "sound": written({"a": tensor(0, 8), "b": tensor(8, 12)}, 12),
    "in another order": written({"b": tensor(8, 12), "a": tensor(0, 8)}, 12),
    "no tensors": written({}, 0),
    "a gap": written({"a": tensor(0, 8), "b": tensor(12, 16)}, 16),
    "an overlap": written({"a": tensor(0, 8), "b": tensor(4, 12)}, 12),
    "bytes behind": written({"a": tensor(0, 8)}, 12),
    "bytes before": written({"a": tensor(4, 12)}, 12),
    "UTF-16": written({"a": tensor(0, 8)}, 8, "utf-16-le"),
    "metadata of numbers": written({"__metadata__": {"a": 1}, "a": tensor(0, 8)}, 8),
    "metadata of lists": written({"__metadata__": [], "a": tensor(0, 8)}, 8),
    "no such dtype": written({"a": tensor(0, 8, [2], "F31")}, 8),
    "a float for a size": written({"a": tensor(0, 8, [2.0])}, 8),
    "a number for a shape": written({"a": tensor(0, 8, 2)}, 8),
    "true for a size": written({"a": tensor(0, 4, [True])}, 4),
    "sizes below zero": written({"a": tensor(0, 8, [-1, -2])}, 8),
    "a size of many digits": written({"a": tensor(0, 0, [0, 10**40])}, 0),
    "sizes whose product is small again": written({"a": tensor(0, 0, [2**33, 2**33])}, 0),
    "a field too many": written({"a": tensor(0, 8, more=1)}, 8),
    "three offsets": written({"a": {**tensor(0, 8), "data_offsets": [0, 8, 8]}}, 8),
    "half a character": content(
        b'{"\\ud800": ' + json.dumps(tensor(0, 8)).encode() + b"}", bytes(8)
    ),
    "nested without end": content(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "a length beyond the file": content(b"{}", b"", 2**40),
    "a length below the header": content(b'{"a": 1}', b"", 4),
    "no header": b"",
}


def read_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return True
    except SafetensorError:
        return False


def read_here(path: Path) -> bool:
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


def read_as_sample(payload: bytes) -> bool:
    try:
        tensor_places(payload)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_file_is_read_if_the_safetensors_library_reads_it(tmp_path: Path, name: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(DOUBTFUL[name])
    taken = read_by_the_library(path)
    assert read_here(path) == taken
    assert read_as_sample(DOUBTFUL[name]) == taken
    if not taken:
        with pytest.raises(CheckpointError):
            read_adapter_file(path)


_SIZES = st.integers(-2, 4) | st.sampled_from([2**31, 2**63, 2**64, 10**30, 1.0, None, "1"])
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I32", "BF16", "f32", "", 1]),
        "shape": st.lists(_SIZES, max_size=3) | _SIZES,
        "data_offsets": st.lists(st.integers(0, 4).map(lambda n: 4 * n) | _SIZES, max_size=3),
    },
    optional={"more": st.none()},
)
_SOUND = st.lists(st.sampled_from([0, 4, 8]), max_size=3).map(
    lambda sizes: {
        f"t{number}": tensor(sum(sizes[:number]), sum(sizes[: number + 1]))
        for number in range(len(sizes))
    }
)
_HEADER = st.dictionaries(st.text(max_size=2), _ENTRY | st.none(), max_size=3) | _SOUND


@settings(max_examples=100, deadline=None)
@given(_HEADER, st.integers(0, 5).map(lambda n: 4 * n), st.integers(-9, 9))
@example({"a": tensor(0, 8)}, 8, 0)
def test_whatever_a_header_says_only_what_the_library_takes_is_believed(
    header: dict[str, Any], data: int, wrong_by: int
):
    text = json.dumps(header).encode()
    payload = content(text, bytes(data), max(0, len(text) + wrong_by // 8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(payload)
        taken = read_by_the_library(path)
        assert read_here(path) == taken
    assert read_as_sample(payload) == taken


def test_of_two_tensors_of_one_name_none_is_believed(tmp_path: Path):
    """The library takes the second one and says nothing; here that is damage."""
    entry = json.dumps(tensor(0, 8)).encode()
    (tmp_path / "a.safetensors").write_bytes(
        content(b'{"a": ' + entry + b', "a": ' + entry + b"}", bytes(8))
    )
    assert not read_here(tmp_path / "a.safetensors")


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((3 * 2**30).to_bytes(8, "little") + b"{")
        file.truncate(4 * 2**30)  # takes no room on the disk
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(path)
