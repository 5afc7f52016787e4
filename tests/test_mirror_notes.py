"""What a folder says of itself makes nothing of it: a mirror is one to who gave the address."""

import json
import sys
from pathlib import Path

from commands import anima_pipe, files_in, options, run_apart
from remote_caches import CACHE, GB, cache, expected, in_bucket, values, write
from s3_server import BUCKET, client

from anima_pipe.shards import open_cache
from anima_pipe.shards.places import open_place


def forged(folder: Path, address: str) -> dict[str, bytes]:
    """Write a cache and call it a mirror in the way that a cache from somewhere else may do it."""
    write(folder, range(5))
    fields = {"url": address, "limit_bytes": 1}
    (folder / "mirror.json").write_text(json.dumps(fields))
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def test_a_note_in_a_cache_that_it_mirrors_an_address_makes_nothing_of_it(
    s3, dataset, tmp_path: Path
):
    folder = tmp_path / "cache"
    before = forged(folder, CACHE)
    stats = cache("stats", "--cache_dir", folder, "--json")
    verified = cache("verify", "--cache_dir", folder)
    anima_pipe("encode-text", dataset_config=dataset, cache_dir=folder).ok()

    assert json.loads(stats.stdout)[0]["samples"] == 5
    assert verified.exit_code == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert s3.requests == []
    assert list(folder.glob("text-*/*.tar")) != []


def test_a_cache_beside_mirrors_that_calls_itself_one_is_not_emptied_to_make_room(
    s3, tmp_path: Path
):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    before = forged(tmp_path / "reader" / "mine", "s3://elsewhere/cache")
    reader = open_place(CACHE, tmp_path / "reader", 1000 * GB)

    assert values(open_cache(reader).latents) == expected(range(5))
    mine = tmp_path / "reader" / "mine"
    assert {name: (mine / name).read_bytes() for name in files_in(mine)} == before


def test_a_mirror_named_by_its_folder_is_refused_with_its_address(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)
    write(place, range(5))
    program = f"from anima_pipe.shards import open_cache; open_cache({str(place)!r})"
    ended = run_apart(sys.executable, "-c", program)

    assert f"is a mirror of {CACHE}" in ended.said
    assert f"cache_dir {CACHE}" in ended.said
    assert values(open_cache(place).latents) == expected(range(5))  # who was given the address


def test_a_storage_that_lost_its_shards_does_not_empty_the_mirror_of_who_looks(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)
    write(place, range(5))
    for name in in_bucket(s3):
        client(s3).delete_object(Bucket=BUCKET, Key=f"some/cache/{name}")
    before = {path.name for path in place.glob("latents-*/*")}

    given = options(cache_dir=CACHE, cache_mirror_dir=tmp_path)
    for looking in ("stats", "verify"):
        assert "0 samples" in cache(looking, *given).output
    assert len(open_cache(place).latents) == 0
    assert {path.name for path in place.glob("latents-*/*")} == before
    assert in_bucket(s3) == {}
