"""What goes wrong between a cache and its storage: each is noticed, named, and mended if it can."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import anima_pipe, assert_one_error, files_in, options
from remote_caches import (
    CACHE,
    GB,
    cache,
    cut_off,
    expected,
    flipped,
    in_bucket,
    put,
    the_tar,
    values,
    write,
)
from s3_server import BUCKET, FaultyServer, client, folder_application, served

from anima_pipe.errors import CacheError, ConfigError
from anima_pipe.shards import open_cache
from anima_pipe.shards.places import open_place, publish_manifest
from anima_pipe.shards.shipping import send_mended, send_pending

READING = """
import sys
from pathlib import Path
from anima_pipe.shards import open_cache
from anima_pipe.shards.places import open_place
store = open_cache(open_place(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))).latents
for _ in range(3):
    print(sum(float(store[key].float().mean()) for key in store))
"""

UPLOADING = """
import os, signal, sys
from pathlib import Path
import fsspec.implementations.local as local
from anima_pipe.shards.places import open_place
from anima_pipe.shards.shipping import send_pending
copied = local.LocalFileSystem.put_file
def killed_half_way(self, source, target, **given):
    if source.endswith(".tar"):
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    copied(self, source, target, **given)
local.LocalFileSystem.put_file = killed_half_way
send_pending(open_place(sys.argv[1], Path(sys.argv[2])))
"""


def listed(content: bytes) -> set[str]:
    folders = json.loads(content)["folders"]
    return {f"{folder}/{name}" for folder, names in folders.items() for name in names}


def spoil_digit(content: bytes) -> bytes:
    """Change one digit of a sidecar: still JSON, still as long, and wrong."""
    place = content.index(b'"offset":[') + len(b'"offset":[')
    return (
        content[:place]
        + (b"1" if content[place : place + 1] != b"1" else b"2")
        + content[place + 1 :]
    )


def the_sidecar(s3) -> tuple[str, bytes]:
    [found] = [(name, body) for name, body in in_bucket(s3).items() if name.endswith("index.json")]
    return found


def test_a_list_that_a_killed_writer_left_behind_is_completed_by_a_run_that_has_nothing_to_do(
    s3, dataset, tmp_path: Path
):
    given = {"dataset_config": dataset, "cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    anima_pipe("cache-latents", **given).ok()
    put(s3, "shards.json", b"{")
    read_meanwhile = open_cache(open_place(CACHE, tmp_path / "reader")).latents
    assert len(read_meanwhile) == 6  # who can list needs no list

    client(s3).delete_object(Bucket=BUCKET, Key="some/cache/shards.json")
    again = anima_pipe("cache-latents", tmp_path / "s.json", **given).ok()

    files = in_bucket(s3)
    assert again.summary is not None
    assert again.summary["encoded"] == 0
    assert listed(files.pop("shards.json")) == set(files)


def test_who_may_not_write_reads_past_a_list_that_lacks_something(s3, tmp_path: Path, caplog):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    client(s3).delete_object(Bucket=BUCKET, Key="some/cache/shards.json")
    s3.answered["PUT"] = [403] * 100
    place = open_place(CACHE, tmp_path / "reader")
    send_pending(place)

    assert "only readers by http" in caplog.text
    assert values(open_cache(place).latents) == expected(range(5))


def test_an_upload_into_a_mounted_folder_that_is_killed_leaves_nothing_under_its_name(
    tmp_path: Path,
):
    there = tmp_path / "slow disk"
    address = f"file://{there}"
    place = open_place(address, tmp_path / "m")
    write(place / "outgoing", range(5))
    program = [sys.executable, "-c", UPLOADING, address, str(tmp_path / "m")]
    assert subprocess.run(program).returncode == -9
    half = [path for path in there.rglob("*") if path.stat().st_size == 1000]
    assert len(half) == 1
    assert half[0].suffix == ".tmp"

    send_pending(place)
    assert values(open_cache(open_place(address, tmp_path / "other")).latents) == expected(range(5))
    assert not half[0].exists()


def test_a_sidecar_that_changes_there_without_changing_its_size_is_fetched_again(
    s3, tmp_path: Path
):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    reader = open_place(CACHE, tmp_path / "reader")
    assert len(open_cache(reader).latents) == 5
    name, content = the_sidecar(s3)
    # Another machine has struck a sample; by chance the text is as long as before.
    put(
        s3,
        name,
        content.replace(b'"key1"', b'"yek1"').rpartition(b',"checksum"')[0] + b"}" + b" " * 23,
    )

    assert len(content) == len(the_sidecar(s3)[1])
    assert "yek1" in open_cache(reader).latents


def test_a_copy_of_a_sidecar_that_rots_on_the_disk_is_fetched_again(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    reader = open_place(CACHE, tmp_path / "reader")
    open_cache(reader)
    [copy] = reader.glob("*/*.index.json")
    copy.write_bytes(spoil_digit(copy.read_bytes()))

    store = open_cache(reader).latents
    assert store.problems == ()
    assert values(store) == expected(range(5))


def test_a_sidecar_that_is_damaged_on_the_way_is_fetched_again(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    s3.spoilt["GET index.json"] = [spoil_digit]

    store = open_cache(open_place(CACHE, tmp_path / "reader")).latents
    assert store.problems == ()
    assert values(store) == expected(range(5))


def writes(server: FaultyServer) -> list[str]:
    return [asked for asked in server.requests if not asked.startswith(("GET ", "HEAD "))]


def test_a_sidecar_that_is_damaged_in_the_storage_is_named_and_made_anew_by_who_writes_there(
    s3, tmp_path: Path
):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    name, content = the_sidecar(s3)
    put(s3, name, spoil_digit(content))
    s3.requests.clear()

    reader = open_place(CACHE, tmp_path / "reader")
    store = open_cache(reader).latents
    assert [str(problem).partition(": ")[2] for problem in store.problems] == [
        f"had a damaged sidecar at {CACHE}; it was rebuilt from the shard"
    ]
    assert values(store) == expected(range(5))
    assert values(open_cache(reader).latents) == expected(range(5))
    assert writes(s3) == []

    send_mended(reader)
    assert the_sidecar(s3)[1] == content
    assert not (reader / "mended").exists()
    assert open_cache(open_place(CACHE, tmp_path / "other")).latents.problems == ()


def test_a_sidecar_that_another_one_has_mended_meanwhile_is_not_overwritten(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    name, content = the_sidecar(s3)
    put(s3, name, spoil_digit(content))
    reader = open_place(CACHE, tmp_path / "reader")
    open_cache(reader)
    put(s3, name, content)
    open_cache(reader)
    s3.requests.clear()

    send_mended(reader)

    assert writes(s3) == []
    assert open_cache(reader).latents.problems == ()


def test_looking_into_a_cache_at_an_address_writes_nothing_there_whatever_is_wrong_with_it(
    s3, tmp_path: Path
):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    name, content = the_tar(s3)
    put(s3, name, flipped(content))
    name, content = the_sidecar(s3)
    s3.requests.clear()
    given = options(cache_dir=CACHE, cache_mirror_dir=tmp_path / "reader")

    ended = [cache(command, *given) for command in ("stats", "verify", "stats")]

    assert "is damaged: 1 sample" in ended[1].output + ended[1].stderr
    assert writes(s3) == []
    assert the_sidecar(s3)[1] == content
    place = open_place(CACHE, tmp_path / "reader")
    assert "key0" not in open_cache(place).latents
    send_mended(place)
    assert "key0" not in open_cache(open_place(CACHE, tmp_path / "other")).latents


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"version": 2, "folders": {"latents-a"', "is damaged"),
        (b'{"version": 1, "folders": {}}', "has version 1"),
        (b"[]", "is damaged"),
        (b'{"version": 2, "folders": {},"checksum":"00000000"}\n', "is damaged"),
    ],
)
def test_a_damaged_list_of_files_is_named_and_not_taken_for_absent(
    tmp_path: Path, content: bytes, words: str
):
    (tmp_path / "shards.json").write_bytes(content)
    with served(folder_application(tmp_path)) as server:
        ended = cache("stats", "--cache_dir", server.address)

    assert ended.exit_code == 2
    assert f"{server.address}/shards.json {words}" in ended.stderr
    assert "`anima-pipe cache manifest` writes it anew" in ended.stderr


def test_a_web_address_with_a_key_in_it_is_read_and_the_key_is_told_nobody(tmp_path: Path, caplog):
    write(tmp_path / "cache", range(5))
    publish_manifest(tmp_path / "cache")
    asked: list[str] = []
    hands_out = folder_application(tmp_path / "cache")

    def guarded(environ, start_response):
        asked.append(environ["QUERY_STRING"])
        if environ["QUERY_STRING"] not in ("key=secret", "key=newer"):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return hands_out(environ, start_response)

    with served(guarded) as server:
        place = open_place(f"{server.address}/?key=secret", tmp_path / "mirror")
        assert values(open_cache(place).latents) == expected(range(5))
        again = open_place(f"{server.address}?key=newer", tmp_path / "mirror")
        assert again == place  # a new key opens the same mirror
        assert values(open_cache(again).latents) == expected(range(5))
        said = cache(
            "stats", *options(cache_dir=f"{server.address}?key=wrong", cache_mirror_dir=tmp_path)
        )

    assert {"key=secret", "key=newer", "key=wrong"} == set(asked)
    assert said.exit_code == 2
    assert "403" in said.stderr
    assert "check the credentials" in said.stderr
    assert "key=" not in said.stderr + caplog.text
    assert "key" not in (place / "mirror.json").read_text()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://b.s3.amazonaws.com/c?X-Amz-Signature=1&X-Amz-Date=2", "signed for one file"),
        ("https://storage.googleapis.com/b/c?Expires=1&GoogleAccessId=2&Signature=3", "one file"),
        ("s3://bucket/cache?versionId=1", "query"),
        ("https://host/cache#part", "#"),
    ],
)
def test_an_address_that_can_hold_no_cache_is_refused_with_the_reason(address: str, reason: str):
    with pytest.raises(ConfigError, match=reason) as refused:
        open_place(address)
    assert "Signature=" not in str(refused.value)


@pytest.mark.parametrize("status", [500, 503])
def test_a_storage_that_is_busy_for_a_moment_is_asked_again(s3, tmp_path: Path, status: int):
    s3.answered = {"PUT .tar": [status], "GET .tar": [status], "GET index.json": [status]}
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    assert values(open_cache(open_place(CACHE, tmp_path / "r")).latents) == expected(range(5))
    assert s3.answered == {"PUT .tar": [], "GET .tar": [], "GET index.json": []}


@pytest.mark.parametrize("status", [500, 403])
def test_a_storage_that_refuses_to_be_read_ends_the_command_and_leaves_nothing_half_written(
    s3, dataset, tmp_path: Path, status: int
):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    s3.answered["GET"] = [status] * 1000
    given = {"dataset_config": dataset, "cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    remedy = "check the credentials, and" if status == 403 else "the network"
    assert_one_error(anima_pipe("train", output_dir=tmp_path / "o", **given), CACHE, remedy)
    s3.answered.clear()
    s3.answered["GET .tar"] = [status] * 1000
    place = open_place(CACHE, tmp_path / "m")
    with pytest.raises(CacheError, match=r"\.tar cannot be read"):
        values(open_cache(place).latents)
    kept = {name for name in files_in(place) if not name.startswith("locks/")}
    assert [name for name in kept if ".tar" in name] == []


def test_who_may_only_read_is_told_before_anything_is_encoded(s3, dataset, tmp_path: Path):
    given = {"dataset_config": dataset, "cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    s3.answered["PUT"] = [403] * 1000
    ended = anima_pipe("cache-latents", **given)

    assert_one_error(ended, CACHE, "cannot be written", "check the credentials, and")
    assert list((tmp_path / "m").rglob("*.tar")) == []


def test_a_bucket_that_is_not_there_is_no_empty_cache(s3, tmp_path: Path):
    ended = cache(
        "stats", *options(cache_dir="s3://no-such-bucket/cache", cache_mirror_dir=tmp_path)
    )
    assert ended.exit_code == 2
    assert "s3://no-such-bucket/cache cannot be read" in ended.stderr
    assert "a bucket or a repository must be there" in ended.stderr


def test_a_web_server_that_sends_a_shard_cut_off_is_named(tmp_path: Path):
    write(tmp_path / "cache", range(5))
    publish_manifest(tmp_path / "cache")
    with served(folder_application(tmp_path / "cache")) as server:
        server.spoilt["GET .tar"] = [cut_off]
        place = open_place(server.address, tmp_path / "mirror")
        assert values(open_cache(place).latents) == expected(range(5))
        shutil.rmtree(place)
        server.spoilt["GET .tar"] = [cut_off] * 1000
        place = open_place(server.address, tmp_path / "mirror")
        with pytest.raises(CacheError, match=r"\.tar"):
            values(open_cache(place).latents)
    assert list(place.glob("*/*.partial")) == []


def test_a_mirror_smaller_than_one_shard_holds_one_and_what_is_read_stays(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(12), shard_bytes=20_000)
    place = open_place(CACHE, tmp_path / "small", 1000 * GB)
    store = open_cache(place).latents
    held = {key: store[key] for key in store}

    assert len(list(place.glob("*/*.tar"))) == 1
    # The shards are gone, and their pages live on in what was read from them.
    assert {key: value.float().mean().item() for key, value in held.items()} == expected(range(12))


@pytest.mark.slow
def test_processes_that_push_each_others_shards_out_of_a_small_mirror_read_on(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(12), shard_bytes=20_000)
    length = len(the_tar_of_many(s3))
    command = [sys.executable, "-c", READING, CACHE, str(tmp_path / "m"), str(1.5 * length * GB)]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    ended = [reader.communicate() for reader in readers]

    assert [list(map(float, out.split())) for out, _ in ended] == [[sum(range(12))] * 3] * 2, ended


def the_tar_of_many(s3) -> bytes:
    return max((body for name, body in in_bucket(s3).items() if name.endswith(".tar")), key=len)


def test_looking_into_a_cache_leaves_the_size_of_its_mirror_as_it_was_given(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path, 7)
    write(place, range(5))
    assert cache("stats", *options(cache_dir=CACHE, cache_mirror_dir=tmp_path)).exit_code == 0
    assert json.loads((place / "mirror.json").read_text())["limit_bytes"] == 7 * 10**9
