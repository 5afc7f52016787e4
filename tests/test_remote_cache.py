"""Caches at an address: written by several, fetched once, whole or not at all, and never stale."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import (
    MODEL,
    ROOT,
    SCRIPTS,
    TRAINING,
    anima_pipe,
    assert_one_error,
    demo_pictures,
    files_in,
    options,
    run_apart,
    write_dataset,
)
from remote_caches import (
    CACHE,
    FINGERPRINT,
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
from s3_server import BUCKET, client, folder_application, served

from anima_pipe.errors import CacheError, OutputError
from anima_pipe.shards import LatentWriter, open_cache
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.places import open_place
from anima_pipe.shards.shipping import send_pending

FETCHING = """
import sys
from pathlib import Path
from anima_pipe.shards import open_cache
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.places import open_place
store = open_cache(open_place(sys.argv[1], Path(sys.argv[2]))).latents
print(sum(float(store[key].float().mean()) for key in store))
"""


@pytest.mark.slow
def test_what_stages_write_to_a_bucket_is_trained_from_elsewhere(
    s3, cached, dataset, tmp_path: Path
):
    remote = {"dataset_config": dataset, "cache_dir": CACHE}
    writer = {"cache_mirror_dir": tmp_path / "writer"}
    fresh = {"cache_mirror_dir": tmp_path / "elsewhere", "auto_cache": False}
    latents = anima_pipe("cache-latents", tmp_path / "s.json", **remote, **writer).ok()
    anima_pipe("encode-text", **remote, **writer).ok()
    again = anima_pipe("cache-latents", tmp_path / "s2.json", **remote, **writer).ok()
    there = anima_pipe("train", tmp_path / "t.json", output_dir=tmp_path / "a", **remote, **fresh)
    here = anima_pipe("train", tmp_path / "u.json", output_dir=tmp_path / "b", **cached)

    assert latents.summary is not None
    assert again.summary is not None
    assert latents.summary.items() >= {"encoded": 6, "shards": 1, "cache_dir": CACHE}.items()
    assert again.summary["encoded"] == 0
    assert [name.split(".", 1)[1] for name in sorted(in_bucket(s3)) if "/2" in name] == [
        "index.json",
        "tar",
        "index.json",
        "tar",
    ]
    assert there.ok().summary["final_loss"] == here.ok().summary["final_loss"]
    fetched = {
        name.rsplit("/", 1)[1] for name in files_in(tmp_path / "elsewhere") if ".tar" in name
    }
    assert {name for name in fetched if name.endswith(".tar")} == {
        name.rsplit("/", 1)[1] for name in in_bucket(s3) if name.endswith(".tar")
    }


@pytest.mark.slow
def test_processes_launched_together_fill_a_bucket_and_train_from_it(
    s3, cached, dataset, tmp_path: Path
):
    remote = {"dataset_config": dataset, "cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    encoders = {name: MODEL[name] for name in ("qwen3", "t5_tokenizer_dir")}
    caching = options(device="cpu", **encoders, **remote)
    module = [sys.executable, "-m", "stages.encode_text_qwen_t5", *caching]
    processes = [
        subprocess.Popen(
            module,
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    given = {**MODEL, **TRAINING, **remote, "device": "cpu", "output_dir": tmp_path / "two"}
    launch = (
        *(SCRIPTS / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0", ROOT / "anima_train_network.py"),
    )
    summary = tmp_path / "s.json"
    # The first process encodes the latents, which are not there yet; the second reads them.
    two = run_apart(*launch, *options(**given, summary_json=summary), summary=summary).ok()
    alone = {**cached, "output_dir": tmp_path / "one", "gradient_accumulation_steps": 2}
    one = anima_pipe("train", tmp_path / "o.json", **alone).ok()

    assert [process.returncode for process in processes] == [0, 0], said
    assert "".join(said).count("1 shard written") == 2
    assert two.summary is not None
    assert one.summary is not None
    assert two.summary["final_loss"] == pytest.approx(one.summary["final_loss"], rel=1e-5)
    tars = [name for name in in_bucket(s3) if name.endswith(".tar")]
    assert len(tars) == 3


def test_several_machines_fill_one_cache_and_each_reads_what_all_have_written(s3, tmp_path: Path):
    machines = [open_place(CACHE, tmp_path / name) for name in ("one", "two", "three")]
    write(machines[0], range(5))
    write(machines[1], range(5, 9))

    assert values(open_cache(machines[2]).latents) == expected(range(9))
    assert values(open_cache(machines[0]).latents) == expected(range(9))
    assert open_cache(CACHE).latents.keys() == expected(range(9)).keys()


def test_the_list_of_files_names_what_all_writers_have_written(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "one"), range(5))
    write(open_place(CACHE, tmp_path / "two"), range(5, 9))

    files = in_bucket(s3)
    listed = json.loads(files.pop("shards.json"))["folders"]
    assert {
        f"{folder}/{name}": file["bytes"]
        for folder in listed
        for name, file in listed[folder].items()
    } == {name: len(content) for name, content in files.items()}


def test_an_upload_that_fails_once_is_tried_again(s3, tmp_path: Path):
    s3.refused |= {"PUT .tar": 1, "PUT index.json": 1}
    write(open_place(CACHE, tmp_path), range(5))

    assert values(open_cache(open_place(CACHE, tmp_path / "other")).latents) == expected(range(5))


@pytest.mark.parametrize("file", [".tar", "index.json"])
def test_a_storage_that_dies_during_the_upload_loses_nothing(s3, tmp_path: Path, file: str):
    place = open_place(CACHE, tmp_path / "writer")
    reader = open_place(CACHE, tmp_path / "reader")
    s3.refused[f"PUT {file}"] = 10**6
    with pytest.raises(OutputError, match="run the same command again"):
        write(place, range(5))
    assert len(open_cache(reader).latents) == 0  # no index without its shard, and not before it

    s3.refused.clear()
    send_pending(place)
    assert values(open_cache(reader).latents) == expected(range(5))
    assert list((place / "outgoing").rglob("*.tar")) == []
    before = s3.counted("GET", ".tar")
    assert values(open_cache(place).latents) == expected(range(5))
    assert s3.counted("GET", ".tar") == before  # who wrote it has it


def test_the_next_stage_uploads_what_the_last_one_could_not(s3, dataset, tmp_path: Path):
    given = {"dataset_config": dataset, "cache_dir": CACHE, "cache_mirror_dir": tmp_path / "m"}
    s3.refused["PUT .tar"] = 10**6
    failed = anima_pipe("cache-latents", **given)
    s3.refused.clear()
    again = anima_pipe("cache-latents", tmp_path / "s.json", **given).ok()

    assert_one_error(failed, CACHE, "cannot be written", "nothing is encoded twice")
    assert "uploading 1 finished shard of earlier runs" in again.said
    assert again.summary is not None
    assert (again.summary["encoded"], again.summary["reused"]) == (0, 6)


def test_a_writer_that_was_killed_before_the_upload_leaves_it_to_the_next_run(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)
    write(place / "outgoing", range(5))
    for sidecar in (place / "outgoing").rglob("*.index.json"):
        sidecar.unlink()  # killed between the two

    send_pending(place)
    assert values(open_cache(place).latents) == expected(range(5))


def test_encoding_goes_on_while_an_upload_fails_and_the_end_tries_again(s3, tmp_path, caplog):
    s3.refused["PUT .tar"] = 10**6
    with LatentWriter(open_place(CACHE, tmp_path), FINGERPRINT, "fp16", "vae", 20_000) as writer:
        for number in range(12):
            writer.add(f"key{number}", torch.full((16, 8, 8), float(number)), {})
        deadline = time.monotonic() + 60
        while "tried again at the end" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        s3.refused.clear()

    assert "tried again at the end" in caplog.text
    reader = open_place(CACHE, tmp_path / "reader")
    assert values(open_cache(reader).latents) == expected(range(12))


def test_an_interrupted_writer_keeps_what_it_has_and_the_next_run_uploads_it(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)

    def interrupted() -> None:
        with LatentWriter(place, FINGERPRINT, "fp16", "vae") as writer:
            writer.add("key3", torch.full((16, 8, 8), 3.0), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    send_pending(place)
    assert values(open_cache(place).latents) == expected([3])


def test_what_a_killed_download_left_is_removed_unless_it_goes_on(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)
    write(place, range(5))
    [tar] = place.glob("*/*.tar")
    left = tar.with_name("killed.tar.partial")
    going_on = tar.with_name("other.tar.partial")
    for file in (left, going_on):
        file.write_bytes(b"half")
    mirror = mirror_at(place)
    assert mirror is not None
    with mirror.locked("other.tar"):
        open_cache(place)

    assert not left.exists()
    assert going_on.exists()


@pytest.mark.parametrize("fault", [cut_off, flipped])
def test_a_shard_spoilt_on_the_way_is_fetched_again(s3, tmp_path: Path, fault):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    s3.spoilt["GET .tar"] = [fault]

    reader = open_place(CACHE, tmp_path / "reader")
    assert values(open_cache(reader).latents) == expected(range(5))


def test_a_shard_that_always_comes_short_never_gets_its_name(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    s3.spoilt["GET .tar"] = [cut_off] * 1000
    reader = open_place(CACHE, tmp_path / "reader")
    store = open_cache(reader).latents
    with pytest.raises(CacheError, match=r"\.tar"):
        _ = store["key1"]

    assert [path.name for path in reader.rglob("*.tar*") if path.suffix != ".lock"] == []


def test_a_shard_damaged_in_the_storage_is_named_and_its_samples_are_encoded_anew(
    s3, dataset, tmp_path: Path
):
    given = {"dataset_config": dataset, "cache_dir": CACHE}
    anima_pipe("cache-latents", **given, cache_mirror_dir=tmp_path / "writer").ok()
    name, content = the_tar(s3)
    put(s3, name, flipped(content))
    reader = {"cache_mirror_dir": tmp_path / "reader"}

    found = cache("verify", *options(cache_dir=CACHE, **reader))
    mended = anima_pipe("cache-latents", tmp_path / "s.json", **given, **reader).ok()
    whole = cache("verify", *options(cache_dir=CACHE, cache_mirror_dir=tmp_path / "third"))

    assert found.exit_code == 1
    assert f"{CACHE}/{name} is damaged: 1 sample" in found.output
    assert mended.summary is not None
    assert (mended.summary["encoded"], mended.summary["reused"]) == (1, 5)
    assert "damaged" not in whole.output


def test_a_copy_that_rots_on_the_disk_is_removed_and_fetched_anew(s3, tmp_path: Path):
    place = open_place(CACHE, tmp_path)
    write(place, range(5))
    [tar] = place.glob("*/*.tar")
    tar.write_bytes(flipped(tar.read_bytes()))
    with pytest.raises(CacheError, match="fetched anew"):
        values(open_cache(place).latents)

    assert values(open_cache(place).latents) == expected(range(5))


@pytest.mark.slow
def test_processes_that_want_the_same_shards_fetch_each_once(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(12), shard_bytes=20_000)
    command = [sys.executable, "-c", FETCHING, CACHE, str(tmp_path / "reader")]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    ended = [reader.communicate() for reader in readers]

    tars = sorted(name for name in in_bucket(s3) if name.endswith(".tar"))
    assert len(tars) > 2
    assert [float(out) for out, _ in ended] == [sum(range(12))] * 2, ended
    reads = [
        request for request in s3.requests if request.startswith("GET") and "reader" not in request
    ]
    whole = [request for request in reads if request.endswith(".tar")]
    assert len(whole) == 2 * len(tars)  # once by the readers, once by this test


def test_the_least_recently_used_shards_make_room(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(20), shard_bytes=20_000)
    tars = [len(body) for name, body in in_bucket(s3).items() if name.endswith(".tar")]
    limit = max(tars) * 2
    stranger = tmp_path / "small" / "own" / "latents-0" / "x.tar"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(bytes(limit))
    place = open_place(CACHE, tmp_path / "small", limit * GB)

    store = open_cache(place).latents
    for _ in range(2):
        assert values(store) == expected(range(20))
        assert sum(path.stat().st_size for path in place.rglob("*.tar")) <= limit
    assert stranger.exists()  # not a mirror's: not ours to remove
    first = next(iter(store))
    kept = {path.name for path in place.rglob("*.tar")}
    values(store)
    _ = store[first]
    assert kept != {path.name for path in place.rglob("*.tar")}


def test_a_shard_that_goes_while_room_is_made_is_no_error(tmp_path: Path):
    own, beside = (open_place(f"file:///nowhere/{name}", tmp_path, 10 * GB) for name in "ab")
    (beside / "latents-0").mkdir()
    kept = beside / "latents-0" / "kept.tar"
    kept.write_bytes(bytes(20))
    # Listed, and not there when it is looked at.
    (beside / "latents-0" / "gone.tar").symlink_to(tmp_path / "nothing")
    mirror = mirror_at(own)
    assert mirror is not None

    mirror.make_room(5)

    assert not kept.exists()


def test_the_mirror_keeps_no_more_than_cache_mirror_gb_allows(s3, dataset, tmp_path: Path):
    place = {"cache_dir": CACHE, "cache_mirror_dir": tmp_path / "mirror", "cache_mirror_gb": 1e-6}
    anima_pipe("cache-latents", dataset_config=dataset, **place).ok()
    [latents] = (tmp_path / "mirror").rglob("*.tar")
    anima_pipe("encode-text", dataset_config=dataset, **place).ok()

    assert [path.name for path in (tmp_path / "mirror").rglob("*.tar")] != [latents.name]
    assert not latents.exists()
    assert sum(name.endswith(".tar") for name in in_bucket(s3)) == 2


def test_a_cache_larger_than_its_mirror_is_warned_of(s3, tmp_path: Path, caplog):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    open_cache(open_place(CACHE, tmp_path / "small", 1000 * GB))
    assert "cache_mirror_gb" in caplog.text


def test_gc_thins_a_remote_cache_out(s3, dataset, pictures, tmp_path: Path):
    given = {"dataset_config": dataset, "cache_dir": CACHE}
    anima_pipe("cache-latents", **given, cache_mirror_dir=tmp_path / "writer").ok()
    fewer = tmp_path / "pictures"
    shutil.copytree(pictures, fewer)
    for path in sorted(fewer.glob("*.txt"))[:2]:
        for file in fewer.glob(f"{path.stem}.*"):
            file.unlink()
    reader = options(cache_dir=CACHE, cache_mirror_dir=tmp_path / "reader")
    some = write_dataset(tmp_path / "some.toml", fewer)

    assert cache("gc", some, *reader, "--delete").exit_code == 0
    for place in ("writer", "third"):
        store = open_cache(open_place(CACHE, tmp_path / place)).latents
        assert len(values(store)) == 4
    listed = json.loads(in_bucket(s3)["shards.json"])["folders"]
    assert sum(name.endswith(".tar") for files in listed.values() for name in files) == 1
    stats = cache("stats", *reader)
    assert "4 samples in 1 shard" in stats.output


def test_a_sidecar_without_its_shard_is_not_used(s3, tmp_path: Path):
    write(open_place(CACHE, tmp_path / "writer"), range(5))
    name, _ = the_tar(s3)
    client(s3).delete_object(Bucket=BUCKET, Key=f"some/cache/{name}")

    store = open_cache(open_place(CACHE, tmp_path / "reader")).latents
    assert len(store) == 0
    assert "only its sidecar" in str(store.problems[0])


@pytest.mark.slow
def test_a_folder_that_a_web_server_hands_out_is_trained_from_and_never_written(
    cached, dataset, pictures, tmp_path: Path
):
    folder = Path(shutil.copytree(str(cached["cache_dir"]), tmp_path / "cache"))
    given = {"dataset_config": dataset, "cache_mirror_dir": tmp_path / "mirror"}
    with served(folder_application(folder)) as server:
        unlisted = cache("stats", "--cache_dir", server.address)
        assert cache("manifest", "--cache_dir", folder).exit_code == 0
        ran = anima_pipe(
            "train", tmp_path / "t.json", output_dir=tmp_path, cache_dir=server.address, **given
        ).ok()
        more = demo_pictures(tmp_path / "more", every=4)
        given["dataset_config"] = write_dataset(tmp_path / "more.toml", more)
        refused = anima_pipe("cache-latents", cache_dir=server.address, **given)
        thinned = cache("gc", given["dataset_config"], "--cache_dir", server.address, "--delete")

    assert "anima-pipe cache manifest" in unlisted.stderr
    assert ran.summary is not None
    assert ran.summary["steps"] == 2
    assert_one_error(refused, server.address, "can only be read")
    assert "can only be read" in thinned.stderr
    assert {request.split()[0] for request in server.requests} <= {"GET", "HEAD"}


def test_a_protocol_whose_package_is_missing_is_one_clear_error(dataset, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    ended = anima_pipe(
        "cache-latents",
        dataset_config=dataset,
        cache_dir="gs://bucket/cache",
        cache_mirror_dir=tmp_path,
    )
    assert_one_error(ended, "gs://bucket/cache", "gcsfs", "pip install")


@pytest.mark.parametrize("address", ["nonsense://bucket/cache", "s3://no-such-bucket/cache"])
def test_an_address_that_leads_nowhere_is_one_clear_error(s3, dataset, address, tmp_path: Path):
    given = {"dataset_config": dataset, "cache_mirror_dir": tmp_path, "cache_dir": address}
    assert_one_error(anima_pipe("cache-latents", **given), address)


def test_a_mounted_folder_may_be_mirrored_like_any_address(tmp_path: Path):
    address = f"file://{tmp_path / 'slow disk' / 'cache'}"
    write(open_place(address, tmp_path / "writer"), range(5))

    assert values(open_cache(tmp_path / "slow disk" / "cache").latents) == expected(range(5))
    assert values(open_cache(open_place(address, tmp_path / "reader")).latents) == expected(
        range(5)
    )


def test_no_name_in_a_list_of_files_leads_out_of_the_mirror(tmp_path: Path):
    folder = tmp_path / "served"
    folder.mkdir()
    evil = {"bytes": 2}
    names = ("../../evil.json", "/evil.json")
    listing = {"..": {"evil.json": evil}, "latents-a": dict.fromkeys(names, evil)}
    (folder / "shards.json").write_text(json.dumps({"version": 2, "folders": listing}))
    (folder / "evil.json").write_text("{}")
    with served(folder_application(folder)) as server:
        open_cache(open_place(server.address, tmp_path / "mirror"))

    assert [name for name in files_in(tmp_path / "mirror") if "evil" in name] == []
