"""A disk that is full or fails takes no encoded sample with it but those that it refused."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_disks import small_disk

from anima_pipe.errors import CacheError, OutputError
from anima_pipe.shards import LatentWriter, open_cache

FINGERPRINT = "3fa1c2" + 58 * "0"


def latent(number: int) -> torch.Tensor:
    return torch.full((16, 8, 8), float(number))


def write(folder: Path, numbers: Iterator[int] | range, **options: int) -> list[str]:
    """Write samples as long as the disk takes them; return the keys of those it took at once."""
    taken: list[str] = []
    with LatentWriter(folder, FINGERPRINT, "fp16", "vae", **options) as writer:
        for number in numbers:
            writer.add(f"key{number}", latent(number), {})
            taken.append(f"key{number}")
    return taken


def write_until_refused(folder: Path, numbers: range, **options: int) -> tuple[list[str], str]:
    """Return the samples that were taken, and what was said of the first that was not."""
    taken: list[str] = []

    def noted() -> Iterator[int]:
        for number in numbers:
            yield number
            taken.append(f"key{number}")

    with pytest.raises(OutputError) as refused:
        write(folder, noted(), **options)
    return taken, str(refused.value)


def file_of(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "unfinished" in path.name]


@pytest.mark.parametrize("room", [101, 160, 256, 301])
def test_a_full_disk_loses_no_sample_that_it_took(tmp_path, room):
    with small_disk(tmp_path / "disk", room * 1024) as disk:
        taken, said = write_until_refused(disk, range(1000), shard_bytes=50_000)
        store = open_cache(disk).latents

        assert len(taken) > 20
        assert sorted(store) == sorted(taken)
        assert all(torch.equal(store[key], latent(int(key[3:])).half()) for key in taken)
        # Of the last shard's sidecar there may be no room; it is made of the shard.
        assert [problem for problem in store.verify() if "no sidecar" not in problem.reason] == []
        assert leftovers(disk) == []
        assert re.match(
            rf"cannot write .*: No space left on device; kept in {disk}/latents-.*: "
            rf"{len(taken)} samples of this run\n"
            rf"  Fix: make room on the disk at {disk} \(.* are free\).*encodes only the rest",
            said,
        )


def test_after_a_full_disk_the_next_run_encodes_only_the_rest(tmp_path):
    with small_disk(tmp_path / "disk", 384 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(220 * 1024))
        taken, _ = write_until_refused(disk, range(60))
        ballast.unlink()
        present = open_cache(disk).latents
        again = write(disk, (n for n in range(60) if f"key{n}" not in present))

        assert sorted(taken + again) == sorted(f"key{number}" for number in range(60))
        assert len(again) == 60 - len(taken)
        assert sorted(open_cache(disk).latents) == sorted(taken + again)


def test_a_file_size_limit_loses_no_sample_that_it_let_through(tmp_path):
    """Room for the end of a shard is taken with its first sample."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import resource, signal, sys, torch
from anima_pipe.errors import OutputError
from anima_pipe.shards import LatentWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with LatentWriter(sys.argv[1], "{FINGERPRINT}", "fp16", "vae") as writer:
        for number in range(100):
            writer.add(f"key{{number}}", torch.full((16, 8, 8), float(number)), {{}})
except OutputError as error:
    print(number, error)
""",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    taken, _, said = ran.stdout.partition(" ")
    assert re.match(rf"cannot write .*\.tar: {os.strerror(errno.EFBIG)}; .*\n  Fix: ", said)
    assert sorted(open_cache(tmp_path).latents) == sorted(f"key{n}" for n in range(int(taken)))
    assert leftovers(tmp_path) == []


def test_a_writer_can_go_on_after_the_disk_refused_a_sample(tmp_path):
    with small_disk(tmp_path / "disk", 512 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(460 * 1024))
        with LatentWriter(disk, FINGERPRINT, "fp16", "vae") as writer:
            writer.add("key0", latent(0), {})
            with pytest.raises(OutputError):
                writer.add("large", torch.ones(16, 64, 64), {})
            ballast.unlink()
            writer.add("key0", latent(0), {})
            writer.add("large", torch.ones(16, 64, 64), {})

        store = open_cache(disk).latents
        assert list(store) == ["key0", "large"]
        assert store.verify() == []


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_a_disk_refuses_only_when_flushed_is_cut_off(tmp_path, monkeypatch, code, times):
    """Network disks and quotas say it late; what then can be read back is kept."""
    fsync, refusals = os.fsync, iter(range(times))

    def refuse(handle: int) -> None:
        is_shard = "unfinished" in file_of(handle)
        if is_shard and next(refusals, None) is not None:
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=os.strerror(code)) as refused:
        write(tmp_path, range(40))

    store = open_cache(tmp_path).latents
    kept = len(store)
    assert list(store) == [f"key{number}" for number in range(kept)]
    assert kept >= 40 - 2**times
    assert store.verify() == []
    assert f"{kept} samples of this run" in str(refused.value)
    assert leftovers(tmp_path) == []


def test_pages_that_never_reached_the_disk_are_not_published(tmp_path, monkeypatch):
    """After a flush that failed the tail of the file is not what was written."""
    fsync, failed = os.fsync, []

    def lose_the_tail(handle: int) -> None:
        name = file_of(handle)
        if "unfinished" in name and not failed:
            failed.append(name)
            with Path(name).open("r+b") as file:
                file.seek(45_000)
                file.write(bytes(20_000))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", lose_the_tail)
    with pytest.raises(OutputError, match=r"Input/output error.*\n.*check the disk"):
        write(tmp_path, range(40))

    store = open_cache(tmp_path).latents
    assert 8 < len(store) < 16
    assert store.verify() == []


def test_a_disk_that_takes_nothing_publishes_nothing_and_says_so(tmp_path, monkeypatch):
    def refuse(handle: int) -> None:
        if "unfinished" in file_of(handle):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="nothing of this run"):
        write(tmp_path, range(40))

    assert len(open_cache(tmp_path).latents) == 0
    assert leftovers(tmp_path) == []


def test_a_shard_whose_sidecar_has_no_room_is_kept(tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        if str(target).endswith(".index.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", refuse)
        disk.setattr(Path, "replace", refuse)
        with pytest.raises(OutputError, match=r"No space left.*40 samples of this run"):
            write(tmp_path, range(40))

    assert list(tmp_path.glob("*/*.index.json")) == []
    assert len(open_cache(tmp_path).latents) == 40
    assert open_cache(tmp_path).latents.problems == ()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path, range(200))
    return tmp_path


READER = """
import os, sys
from anima_pipe.errors import CacheError
from anima_pipe.shards import open_cache
store = open_cache(sys.argv[1]).latents
print(float(store["key150"][0, 0, 0]), float(store.stacked(["key150", "key151"])[1, 0, 0, 0]))
os.truncate(next(store.folder.glob("*.tar")), 20_000)
for read in (store.__getitem__, store.metadata, lambda key: store.stacked([key])):
    for key in ("key0", "key150"):
        try:
            read(key)
        except CacheError as error:
            print(error)
"""


def test_a_shard_cut_off_while_it_is_trained_on_is_an_error_that_names_the_sample(cache):
    ran = subprocess.run([sys.executable, "-c", READER, str(cache)], capture_output=True, text=True)
    assert ran.returncode == 0, (signal.Signals(-ran.returncode), ran.stderr)
    values, *errors = ran.stdout.splitlines()
    assert values == "150.0 151.0"
    tar = next(cache.glob("*/*.tar"))
    assert len(errors) == 6
    for problem, remedy in zip(errors[::2], errors[1::2], strict=True):
        assert re.match(rf"sample key150 in {tar} cannot be read: .* cut off at 20000$", problem), (
            problem
        )
        assert "run the same command again" in remedy


@pytest.mark.parametrize("reading", ["a sample", "a batch", "what is noted", "verify"])
def test_a_disk_that_fails_is_an_error_that_names_shard_and_sample(cache, monkeypatch, reading):
    store = open_cache(cache).latents
    store["key3"]  # opens the shard, and checks the sample
    (tar,) = cache.glob("*/*.tar")

    def fail(handle: int, parts: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    if reading == "verify":
        (problem,) = store.verify()
        assert str(problem).startswith(f"{tar}: sample key0 in {tar} cannot be read: Input/output")
        return
    read = {
        "a sample": store.__getitem__,
        "a batch": lambda key: store.stacked([key]),
        "what is noted": store.metadata,
    }[reading]
    with pytest.raises(
        CacheError, match=rf"^sample key3 in {tar} cannot be read: Input/output.*\n.*check the disk"
    ):
        read("key3")


def test_a_disk_that_gives_a_little_at_a_time_gives_the_same(cache, monkeypatch):
    before = open_cache(cache).latents
    keys = ["key7", "key199", "key0"]
    preadv = os.preadv

    def little(handle: int, parts: list[memoryview], offset: int) -> int:
        return preadv(handle, [parts[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", little)
    store = open_cache(cache).latents

    assert torch.equal(store.stacked(keys), torch.stack([latent(int(k[3:])).half() for k in keys]))
    assert torch.equal(store["key7"], before["key7"])
    assert store.metadata("key7") == {}
