"""A server that sends more than was promised is cut off, with one error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import options
from remote_caches import cache, expected, values, write
from s3_server import folder_application, served

from anima_pipe.errors import CacheError
from anima_pipe.shards import open_cache
from anima_pipe.shards.places import open_place, publish_manifest

PIECE = 2**16
FEW = 64 * 2**20 // PIECE
"""Pieces that may lie in buffers on the way when a transfer ends."""


class Endless:
    """Hands out a folder; files of one ending have no end."""

    def __init__(self, folder: Path) -> None:
        self.hands_out = folder_application(folder)
        self.ending = ""
        self.announced: int | None = None
        """Bytes that it says will come; None: nothing is said."""
        self.pieces = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not self.ending or not environ["PATH_INFO"].endswith(self.ending):
            return self.hands_out(environ, start_response)
        length = [] if self.announced is None else [("Content-Length", str(self.announced))]
        start_response("200 OK", length)
        return self._body()

    def _body(self) -> Iterator[bytes]:
        for _ in range(100 * FEW):  # six gigabytes: a test that fails has an end
            self.pieces += 1
            yield bytes(PIECE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "cache", range(5))
    publish_manifest(tmp_path / "cache")
    return tmp_path / "cache"


def test_a_shard_without_end_is_cut_off_where_its_sidecar_says(folder: Path, tmp_path: Path):
    server = Endless(folder)
    with served(server) as address:
        place = open_place(address.address, tmp_path / "mirror")
        store = open_cache(place).latents
        server.ending = ".tar"
        with pytest.raises(CacheError, match=r"\.tar has more than the [\d,]+ bytes"):
            values(store)
        assert 0 < server.pieces < FEW
        assert list(place.glob("*/*.partial")) == []
        server.ending = ""
        assert values(store) == expected(range(5))


def test_a_sidecar_without_end_is_cut_off_and_made_from_its_shard(folder: Path, tmp_path: Path):
    server = Endless(folder)
    server.ending = ".index.json"
    with served(server) as address:
        store = open_cache(open_place(address.address, tmp_path / "mirror")).latents
        assert values(store) == expected(range(5))
    assert "had no sidecar" in str(store.problems[0])
    assert 0 < server.pieces < 2 * FEW


@pytest.mark.parametrize("announced", [2**40, None])
def test_a_list_of_files_without_end_is_refused(
    folder: Path, tmp_path: Path, announced: int | None
):
    server = Endless(folder)
    server.ending, server.announced = "shards.json", announced
    with served(server) as address:
        ended = cache("stats", *options(cache_dir=address.address, cache_mirror_dir=tmp_path / "m"))
    assert ended.exit_code == 2
    assert ended.stderr.count("error:") == 1
    assert "shards.json has more than the 268,435,456 bytes" in ended.stderr
    assert server.pieces * PIECE < 2**28 + FEW * PIECE


def test_a_file_in_a_mounted_folder_that_grew_is_not_copied(folder: Path, tmp_path: Path):
    place = open_place(f"file://{folder}", tmp_path / "mirror")
    store = open_cache(place).latents
    (tar,) = folder.glob("*/*.tar")
    with tar.open("ab") as file:
        file.truncate(2**33)  # takes no room on the disk
    with pytest.raises(CacheError, match="has more than the"):
        values(store)
    assert list(place.glob("*/*.tar")) == []
