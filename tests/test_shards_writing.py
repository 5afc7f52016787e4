"""Whatever happens to a writer, every published shard is whole and the next run goes on."""

import fcntl
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import suppress

import pytest
import torch

from anima_pipe.errors import OutputError
from anima_pipe.files import published
from anima_pipe.shards import LatentWriter, open_cache
from anima_pipe.shards.contents import tidy

FINGERPRINT = "3fa1c2" + 58 * "0"

WRITER = f"""
import os, random, resource, signal, sys, time, torch
from anima_pipe.shards import LatentWriter, open_cache

def fill(folder, numbers, shard_bytes=20_000):
    present = open_cache(folder).latents
    with LatentWriter(folder, "{FINGERPRINT}", "fp16", "vae", shard_bytes) as writer:
        for number in numbers:
            if f"key{{number}}" not in present:
                latent = torch.full((16, 8, 8), float(number))
                writer.add(f"key{{number}}", latent, {{"number": number}})

def in_child(act):
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    return pid
"""


def run_writer(script, folder):
    """Run a script after WRITER in a process of its own, where forking and limits do no harm."""
    return subprocess.run(
        [sys.executable, "-c", WRITER + script, str(folder)], capture_output=True, text=True
    )


def published_keys(folder):
    """Return the key of every sample in every tar, read by nothing of ours."""
    keys = []
    for path in folder.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            keys += [name.removesuffix(".json") for name in tar.getnames() if ".json" in name]
    return keys


def unfinished(folder):
    return [path.name for path in folder.rglob("*") if "unfinished" in path.name]


def write(folder, numbers, **options):
    with LatentWriter(folder, FINGERPRINT, "fp16", "vae", **options) as writer:
        for number in numbers:
            writer.add(f"key{number}", torch.full((16, 8, 8), float(number)), {})
    return writer


def test_a_writer_killed_at_any_moment_leaves_whole_shards_and_the_next_run_goes_on(tmp_path):
    ran = run_writer(
        """
rng = random.Random(0)
fill(sys.argv[1], range(5))
leftovers = attempts = 0
# On a busy machine many a kill comes between two shards: so many until enough found it at work.
while leftovers < 6 or attempts < 25:
    attempts += 1
    child = in_child(lambda: fill(sys.argv[1], range(10**6)))
    working = f".{child}.unfinished"
    while not any(name.endswith(working) for _, _, names in os.walk(sys.argv[1]) for name in names):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    leftovers += any("unfinished" in name for _, _, names in os.walk(sys.argv[1]) for name in names)
print(leftovers)
""",
        tmp_path,
    )
    assert int(ran.stdout) > 5, ran.stderr
    open_cache(tmp_path)  # makes the sidecar that the last kill may have prevented
    survivors = open_cache(tmp_path).latents
    assert len(survivors) > 0
    assert survivors.verify() == []

    total = len(survivors) + 30
    again = run_writer(f"fill(sys.argv[1], range({total}))", tmp_path)
    assert again.returncode == 0, again.stderr

    store = open_cache(tmp_path).latents
    wanted = sorted(f"key{number}" for number in range(total))
    assert sorted(store) == wanted
    assert sorted(published_keys(tmp_path)) == wanted  # nothing was encoded twice
    assert store.verify() == []
    assert all(store[f"key{number}"][0, 0, 0] == number for number in range(total))
    assert unfinished(tmp_path) == []


def test_a_writer_interrupted_at_any_line_publishes_whole_samples_and_a_sidecar_that_fits(tmp_path):
    """Ctrl-C may come between any two lines of a sample's being added."""
    sample = torch.full((16, 8, 8), 2.0)
    for last_line in itertools.count():
        folder, lines = tmp_path / str(last_line), itertools.count()

        def trace(frame, event, argument, lines=lines, last_line=last_line):
            if "anima_pipe/shards" not in frame.f_code.co_filename:
                return None
            if event == "line" and next(lines) == last_line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        with (
            suppress(KeyboardInterrupt),
            LatentWriter(folder, FINGERPRINT, "fp16", "vae") as writer,
        ):
            writer.add("key0", torch.zeros(16, 8, 8), {})
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                writer.add("key1", sample, {})
            finally:
                sys.settrace(before)
        cache = open_cache(folder).latents
        assert cache.problems == ()
        assert cache.verify() == []
        assert set(cache) - {"key1"} == {"key0"}
        assert sorted(published_keys(folder)) == sorted(cache)
        if next(lines) <= last_line:
            break
    assert last_line > 20, "the trace saw no line of a sample's being added"
    assert torch.equal(cache["key1"], sample.half())


def test_writers_in_several_processes_fill_one_cache(tmp_path):
    ran = run_writer(
        """
children = [in_child(lambda: fill(sys.argv[1], range(start, start + 60))) for start in (0, 30, 40)]
print([os.waitpid(child, 0)[1] for child in children])
""",
        tmp_path,
    )
    assert ran.stdout.strip() == "[0, 0, 0]", ran.stderr

    store = open_cache(tmp_path).latents
    assert sorted(store) == sorted(f"key{n}" for n in range(100))
    assert all(store[f"key{n}"][0, 0, 0] == n for n in range(100))
    assert store.verify() == []


def test_leaving_by_an_exception_keeps_what_was_encoded(tmp_path):
    def encode(numbers):
        yield from numbers
        raise RuntimeError("the encoder ran out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path, encode([1]))

    assert list(open_cache(tmp_path).latents) == ["key1"]


# Between the opening of a file and the next instruction no code can close it: the collector does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_whole_samples_only(tmp_path):
    class Interrupted(BaseException):
        pass

    def interrupt(number, frame):
        raise Interrupted

    rng = random.Random(0)
    previous = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        for attempt in range(40):
            # Not without end: an interrupt that comes within a finaliser stops nothing.
            numbers = range(1000 * attempt, 1000 * (attempt + 1))
            signal.setitimer(signal.ITIMER_VIRTUAL, rng.uniform(0.002, 0.02))
            with suppress(Interrupted):
                write(tmp_path, numbers, shard_bytes=50_000)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, previous)

    open_cache(tmp_path)  # makes the sidecars that an interrupt may have prevented
    store = open_cache(tmp_path).latents
    assert len(store) > 40
    assert store.verify() == []
    assert all(store[key][0, 0, 0] == torch.tensor(float(key[3:])).half() for key in store)


def test_nothing_of_a_shard_in_progress_is_taken_for_a_shard(tmp_path):
    with LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as writer:
        writer.add("key1", torch.ones(16, 8, 8), {})
        during = [path.name for path in tmp_path.rglob("*.tar")]
        assert unfinished(tmp_path) != []

    assert during == []
    assert len(list(tmp_path.rglob("*.tar"))) == 1
    assert unfinished(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")

    with pytest.raises(OutputError, match=r"cannot write .*cache/latents-3fa1c2000000-fp16"):
        write(tmp_path / "cache", [1])


HERE = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
DAY = 24 * 3600


@pytest.mark.parametrize(
    ("host", "alive", "age", "locked", "removed"),
    [
        (HERE, False, 0, False, True),
        (HERE, True, 0, False, False),
        (HERE, False, 0, True, False),
        ("elsewhere", False, 0, False, False),
        ("elsewhere", False, 2 * DAY, False, True),
        (HERE, True, 2 * DAY, False, True),
        (HERE, True, 600, False, True),
        (HERE, True, 600, True, False),
    ],
    ids=[
        "of a dead process",
        "of a living process",
        "of a process in another container",
        "of another host, young",
        "of another host, old",
        "old and its process number given anew",
        "not locked, its process number given anew",
        "of a slow writer",
    ],
)
def test_leftovers_are_removed_when_nobody_can_be_writing_to_them(
    tmp_path, host, alive, age, locked, removed
):
    folder = write(tmp_path, [1]).folder
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftover = folder / f"w-000000.tar.{host}.{os.getpid() if alive else ended.pid}.unfinished"
    with leftover.open("wb") as file:
        if locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(leftover, (time.time() - age, time.time() - age))
        write(tmp_path, [2])

    assert leftover.exists() != removed


@pytest.mark.parametrize("alive", [True, False])
def test_small_files_of_dead_writers_are_removed_from_all_folders(tmp_path, alive):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "scan").mkdir()
    for folder in (tmp_path / "scan", write(tmp_path, [1]).folder):
        with published(folder / "some.json") as temporary:
            temporary.touch()
            name = temporary.name
            if not alive:
                name = name.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
            (folder / f"{name[:-12]}00000000.tmp").touch()
    tidy(tmp_path)
    assert len(list(tmp_path.rglob(".*.tmp"))) == (2 if alive else 0)


def test_nothing_of_others_is_removed_where_the_cache_is_among_other_folders(tmp_path):
    write(tmp_path, [1])
    (tmp_path / "text-encoder").mkdir()
    (tmp_path / "scan").mkdir()
    others = [
        tmp_path / "text-encoder" / "model.safetensors.index.json",
        tmp_path / "text-encoder" / ".download.tmp",
        tmp_path / "text-encoder" / "a.tar.elsewhere.1.unfinished",
        tmp_path / "scan" / ".page.tmp",
    ]
    for path in others:
        path.touch()
        os.utime(path, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    tidy(tmp_path)
    assert all(path.exists() for path in others)


def test_two_writers_in_one_process_do_not_disturb_each_other(tmp_path):
    with (
        LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as one,
        LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as other,
    ):
        for number in range(10):
            for writer in (one, other):
                writer.add(f"key{number}", torch.full((16, 8, 8), float(number)), {})

    store = open_cache(tmp_path).latents
    assert len(store) == 10
    assert len(published_keys(tmp_path)) == 20
    assert store.verify() == []
