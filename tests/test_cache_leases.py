"""gc beside others: what somebody has open stays, what goes can come back, and nobody trips."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_caches import cache, expected, values, write

from anima_pipe.shards import open_cache
from anima_pipe.shards.leases import holders
from anima_pipe.shards.pruning import find_waste, remove_waste
from anima_pipe.shards.statistics import cache_statistics
from anima_pipe.shards.trash import empty_trash

SMALL_SHARDS = 20_000
"""Bytes: four samples each."""

HOLDING = """
import sys, time
from anima_pipe.shards import open_cache
opened = open_cache(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""

FAR_HEARTBEAT_SECONDS = 3600


def thin_out(folder: Path, needed: set[str], *, now: bool = False) -> list[str]:
    """Do what gc does; return what it says of each shard."""
    return [remove_waste(waste, now=now) for waste in find_waste(folder, {"latents": needed})]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of twenty samples in five shards."""
    write(tmp_path / "cache", range(20), shard_bytes=SMALL_SHARDS)
    return tmp_path / "cache"


def encoder(folder: Path) -> Path:
    (found,) = folder.glob("latents-*")
    return found


def trashed(folder: Path) -> list[Path]:
    return sorted((folder / "trash").rglob("*.tar"))


def test_what_somebody_has_open_stays_until_it_is_closed(folder: Path):
    opened = open_cache(folder)
    assert all(f"in use by process {os.getpid()}" in said for said in thin_out(folder, {"key3"}))
    assert values(opened.latents) == expected(range(20))

    del opened
    assert set(thin_out(folder, {"key3"})) == {""}
    assert values(open_cache(folder).latents) == expected([3])


def test_gc_says_which_process_has_the_cache_open(
    dataset: Path, cached: dict[str, object], tmp_path: Path
):
    folder = Path(str(cached["cache_dir"]))
    opened = open_cache(folder)
    samples = len(opened.latents)
    other = tmp_path / "other.toml"
    other.write_text(dataset.read_text().replace("resolution = 128", "resolution = 64"))
    said = cache("gc", other, "--cache_dir", folder, "--delete")

    assert said.exit_code == 0, said.output
    assert f"stays, in use by process {os.getpid()} on" in said.output
    assert "1 shard in use: run gc again" in said.output
    assert "removed 0 samples" in said.output
    assert len(values(open_cache(folder).latents)) == samples


def test_who_was_killed_holds_nothing(folder: Path):
    program = [sys.executable, "-c", HOLDING, str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        assert [who.split()[1] for who in holders(encoder(folder))] == [str(holder.pid)]
        holder.send_signal(signal.SIGKILL)

    assert holders(encoder(folder)) == []
    assert set(thin_out(folder, {"key3"})) == {""}


def test_a_machine_that_is_heard_of_no_more_holds_nothing(folder: Path):
    lease = folder / "leases" / f"{encoder(folder).name}.elsewhere.1.0a0a0a0a.lease"
    lease.touch()
    assert thin_out(folder, {"key3"})[0] == "stays, in use by process 1 on elsewhere"

    long_ago = time.time() - FAR_HEARTBEAT_SECONDS
    os.utime(lease, (long_ago, long_ago))
    assert set(thin_out(folder, {"key3"})) == {""}
    assert not lease.exists()


def test_a_lease_that_cannot_be_looked_into_is_respected(folder: Path):
    (folder / "leases" / f"{encoder(folder).name}.here.1.0a0a0a0a.lease").mkdir()

    assert thin_out(folder, {"key3"})[0] == "stays, in use by process 1 on here"
    assert values(open_cache(folder).latents) == expected(range(20))


def test_who_reads_without_a_lease_finds_in_the_trash_what_was_removed(folder: Path):
    reader = pickle.loads(pickle.dumps(open_cache(folder).latents))
    thin_out(folder, {"key3"})

    assert len(trashed(folder)) == 5
    assert values(reader) == expected(range(20))
    assert values(open_cache(folder).latents) == expected([3])


def test_what_was_removed_can_be_moved_back(folder: Path):
    thin_out(folder, set())
    for file in (folder / "trash" / encoder(folder).name).iterdir():
        file.rename(encoder(folder) / file.name)

    store = open_cache(folder).latents
    assert store.problems == ()
    assert values(store) == expected(range(20))


def test_the_trash_is_emptied_a_day_later_but_of_nothing_that_is_in_use(folder: Path):
    thin_out(folder, {"key3"})
    empty_trash(folder)
    assert len(trashed(folder)) == 5

    two_days_ago = time.time() - 2 * 24 * 3600
    for file in trashed(folder):
        os.utime(file, (two_days_ago, two_days_ago))
    opened = open_cache(folder)
    empty_trash(folder)
    assert len(trashed(folder)) == 5
    del opened
    empty_trash(folder)
    assert trashed(folder) == []


def test_two_that_empty_the_trash_at_once_do_not_trip_over_each_other(tmp_path: Path):
    folder = tmp_path / "trash" / "latents-0123"
    ready = threading.Barrier(2)
    raised: list[Exception] = []

    def empty(number: int) -> None:
        try:
            for _ in range(300):
                if number == 0:
                    folder.mkdir(parents=True)
                ready.wait()
                empty_trash(tmp_path, now=True)
                ready.wait()
        except (OSError, threading.BrokenBarrierError) as error:
            raised.append(error)
            ready.abort()

    threads = [threading.Thread(target=empty, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert raised == []


def test_now_deletes_at_once(folder: Path):
    assert set(thin_out(folder, {"key3"}, now=True)) == {""}
    assert trashed(folder) == []
    assert values(open_cache(folder).latents) == expected([3])


def test_gcs_openings_and_statistics_at_the_same_time_do_not_trip_over_each_other(folder: Path):
    failures: list[BaseException] = []
    needed = {f"key{number}" for number in range(0, 20, 3)}
    over = threading.Event()

    def trying(act: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    def open_and_read() -> None:
        store = open_cache(folder).latents
        assert needed <= values(store).keys()

    acts = (
        *(lambda: thin_out(folder, needed),) * 2,
        *(open_and_read, lambda: cache_statistics(folder)),
        lambda: write(folder, range(20), shard_bytes=SMALL_SHARDS),
    )
    threads = [threading.Thread(target=trying, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    time.sleep(8)
    over.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert needed <= values(open_cache(folder).latents).keys()
