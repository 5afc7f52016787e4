"""A shard that nobody's writer wrote costs that shard's samples, and never the cache."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
import torch

from anima_pipe.errors import CacheError
from anima_pipe.shards import LatentWriter, open_cache
from anima_pipe.shards.checksum import with_checksum
from anima_pipe.shards.contents import held_in

FINGERPRINT = "3fa1c2" + 58 * "0"
NAME = f"{FINGERPRINT[:12]}-fp16"
DEEP = b"[" * 200_000 + b"]" * 200_000


def write(folder: Path, *keys: str) -> Path:
    """Write a shard of its own; return its path."""
    before = set(folder.glob("*/*.tar"))
    with LatentWriter(folder, FINGERPRINT, "fp16", "vae.safetensors") as writer:
        for number, key in enumerate(keys):
            writer.add(key, torch.full((16, 4, 6), float(number)), {})
    (tar,) = set(folder.glob("*/*.tar")) - before
    return tar


def sidecar_of(tar: Path) -> Path:
    return tar.with_suffix(".index.json")


def pax(length_field: bytes) -> bytes:
    """Return the header that gives the next member an attribute of its own: its size."""
    record = b" size=" + length_field + b"\n"
    total = len(record)
    while len(str(total).encode()) + len(record) != total:
        total = len(str(total).encode()) + len(record)
    text = str(total).encode() + record
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(text)
    return info.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // 512) * 512, b"\0")


def huge(size: int) -> bytes:
    """Return the header of a member of so many bytes, none of which is there."""
    info = tarfile.TarInfo("x.json")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_name(size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


ABSURD = {
    "pax size of 20 digits": pax(b"99999999999999999999"),
    "pax size of 5000 digits": pax(b"9" * 5000),
    "pax size below zero": pax(b"-100000"),
    "pax size of no digits": pax(b"many"),
    "pax headers of pax headers": pax(b"1") * 3000,
    "a member of an exabyte": huge(2**60),
    "a member of more than any disk": huge(2**80),
    "a name of an exabyte": long_name(2**60),
    "a name of more than any disk": long_name(2**80),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_tar_that_says_absurd_things_costs_its_own_samples_alone(tmp_path: Path, name: str):
    sound, hostile = write(tmp_path, "one", "two"), write(tmp_path, "three", "four")
    hostile.write_bytes(ABSURD[name] + hostile.read_bytes())
    sidecar_of(hostile).unlink()

    cache = open_cache(tmp_path).latents

    assert {"one", "two"} <= set(cache) <= {"one", "two", "three", "four"}
    assert cache["two"].mean() == 1
    assert any(problem.shard == hostile for problem in cache.problems)
    assert sound.exists()
    held = held_in(tmp_path, "latents", NAME).keys
    missing = [key for key in ("three", "four") if key not in held]
    if missing:
        write(tmp_path, *missing)
    assert set(open_cache(tmp_path).latents) == {"one", "two", "three", "four"}


def rewritten(tar: Path, key: str, metadata: bytes) -> None:
    """Put another JSON member into a shard."""
    with tarfile.open(tar) as old:
        members = [(info.name, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as new:
        for name, content in members:
            put = metadata if name == f"{key}.json" else content
            info = tarfile.TarInfo(name)
            info.size = len(put)
            new.addfile(info, io.BytesIO(put))
    tar.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "metadata", [DEEP, b'{"crc32": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}", b"9" * 5000, b"NaN"]
)
def test_a_sample_whose_json_cannot_be_read_is_named_and_encoded_anew(
    tmp_path: Path, metadata: bytes
):
    tar = write(tmp_path, "one", "two")
    rewritten(tar, "one", metadata)
    sidecar_of(tar).unlink()

    cache = open_cache(tmp_path).latents

    assert set(cache) == {"two"}
    assert "one" in {problem.key for problem in cache.problems}


def test_deep_json_that_has_its_checksum_is_an_error_of_its_sample(tmp_path: Path):
    tar = write(tmp_path, "one", "two")
    rewritten(tar, "one", DEEP)
    sidecar = sidecar_of(tar)
    index = json.loads(sidecar.read_bytes())
    with tarfile.open(tar) as opened:
        places = {info.name: (info.offset_data, info.size) for info in opened}
    content = tar.read_bytes()
    for row, key in enumerate(index["keys"]):
        for part in ("json", "safetensors"):
            offset, length = places[f"{key}.{part}"]
            index[part]["offset"][row], index[part]["length"][row] = offset, length
            index[part]["crc32"][row] = zlib.crc32(content[offset : offset + length])
    index["tar_bytes"] = len(content)
    del index["checksum"]
    sidecar.write_bytes(with_checksum(json.dumps(index).encode()))

    cache = open_cache(tmp_path).latents

    with pytest.raises(CacheError, match="sample one"):
        cache.metadata("one")


@pytest.mark.parametrize("content", [DEEP, b'{"version": 1, "tar": ' + b"9" * 5000 + b"}"])
def test_a_sidecar_that_cannot_be_read_is_rebuilt(tmp_path: Path, content: bytes):
    tar = write(tmp_path, "one", "two")
    sidecar_of(tar).write_bytes(content)

    assert set(open_cache(tmp_path).latents) == {"one", "two"}


@pytest.mark.parametrize(
    ("part", "column", "numbers"),
    [
        ("json", "offset", [10**30, -(10**30)]),
        ("safetensors", "length", [2**60, 2**60]),
        ("safetensors", "length", [-1, 0]),
        ("json", "offset", [2**62, 2**62]),
    ],
)
def test_a_sidecar_of_places_that_its_tar_does_not_have_is_rebuilt(
    tmp_path: Path, part: str, column: str, numbers: list[int]
):
    tar = write(tmp_path, "one", "two")
    index = json.loads(sidecar_of(tar).read_bytes())
    index[part][column] = numbers
    del index["checksum"]
    sidecar_of(tar).write_bytes(with_checksum(json.dumps(index).encode()))

    cache = open_cache(tmp_path).latents

    assert set(cache) == {"one", "two"}
    assert cache["two"].mean() == 1


def test_a_description_of_a_cache_that_is_nested_without_end_is_one_clear_error(tmp_path: Path):
    tar = write(tmp_path, "one")
    (tar.parent / "cache.json").write_bytes(DEEP)
    with pytest.raises(CacheError, match=r"cache\.json cannot be read"):
        open_cache(tmp_path)
