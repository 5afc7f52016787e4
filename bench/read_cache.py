"""Read cached latents at random: from shards, and from one fp32 .npz per picture.

    python bench/read_cache.py [--samples 256] [--index 100000]

Both sides hold the same latents, those of pictures of 1024x1024 pixels: ours in fp16 in shards, the
other as most trainers keep them. Both are read in the same random order, from warm disk pages, in
the dtype that they are stored in: one by one, and in batches of four. Ours are hashed at every
reading; the first reading of a sample compares more. Then a cache of many tiny samples is opened
in a process of its own. Linux: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from anima_pipe.shards import LatentWriter, open_cache

LATENT = (16, 128, 128)
BATCH = 4
ROUNDS = 5
TARGET_RATIO = 5.0
TARGET_OPEN_SECONDS = 2.0
TARGET_OPEN_MIB = 300.0

OPENS = """
import json, sys, time
from pathlib import Path
from anima_pipe.shards import open_cache
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before, started = resident(), time.perf_counter()
cache = open_cache(sys.argv[1])
seconds = time.perf_counter() - started
print(json.dumps([seconds, resident() - before, len(cache.latents)]))
"""

Read = Callable[[str], torch.Tensor]
ReadBatch = Callable[[Sequence[str]], torch.Tensor]


def main() -> int:
    """Measure reading and opening; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--index", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reads_well = compare_reading(Path(folder), options.samples)
    with tempfile.TemporaryDirectory() as folder:
        opens_well = measure_opening(Path(folder), options.index)
    return 0 if reads_well and opens_well else 1


def compare_reading(folder: Path, count: int) -> bool:
    """Print the rates of both sides; return whether their ratio is what it should be."""
    keys = write_both(folder, count)
    other = read_npz(folder / "npz")
    fresh: list[float] = []
    single: dict[str, list[float]] = {"ours": [], "npz": []}
    batched: dict[str, list[float]] = {"ours": [], "npz": []}
    for number in range(ROUNDS):
        random.Random(number).shuffle(keys)  # noqa: S311 - not a secret
        ours = open_cache(folder / "cache").latents
        stack = partial(stacked, other)
        fresh.append(rate_of_batches(ours.stacked, keys))
        for side, read, read_batch in (
            ("ours", ours.__getitem__, ours.stacked),
            ("npz", other, stack),
        ):
            single[side].append(rate(read, keys))
            batched[side].append(rate_of_batches(read_batch, keys))
    one_by_one, best = max(single["npz"]), max(batched["npz"])
    ratio = max(batched["ours"]) / best
    print(
        f"{count} latents of {LATENT}, samples per second against .npz: "
        f"{max(single['ours']) / one_by_one:.1f} x one by one "
        f"({max(single['ours']):.0f} against {one_by_one:.0f}), "
        f"{ratio:.1f} x in batches of {BATCH} ({max(batched['ours']):.0f} against {best:.0f}), "
        f"{max(fresh) / best:.1f} x the first time ({max(fresh):.0f})",
        flush=True,
    )
    return ratio >= TARGET_RATIO


def write_both(folder: Path, count: int) -> list[str]:
    """Write the same latents to shards and to one file each; return their keys."""
    (folder / "npz").mkdir()
    keys = [f"{number:032x}" for number in range(count)]
    torch.manual_seed(0)
    with LatentWriter(folder / "cache", "0" * 64, "fp16", "random") as writer:
        for key in keys:
            latent = torch.randn(LATENT)
            writer.add(key, latent, {})
            np.savez(folder / "npz" / f"{key}.npz", latents=latent.numpy())
    return keys


def read_npz(folder: Path) -> Read:
    """Return what reads a latent from its own file."""

    def read(key: str) -> torch.Tensor:
        with np.load(folder / f"{key}.npz") as file:
            return torch.from_numpy(file["latents"])

    return read


def rate(read: Read, keys: Sequence[str]) -> float:
    """Return samples per second."""
    started = time.perf_counter()
    for key in keys:
        read(key)
    return len(keys) / (time.perf_counter() - started)


def rate_of_batches(read: ReadBatch, keys: Sequence[str]) -> float:
    """Return samples per second in batches."""
    started = time.perf_counter()
    for start in range(0, len(keys), BATCH):
        read(keys[start : start + BATCH])
    return len(keys) / (time.perf_counter() - started)


def stacked(read: Read, keys: Sequence[str]) -> torch.Tensor:
    """Read samples one by one, and copy them into a batch."""
    return torch.stack([read(key) for key in keys])


def measure_opening(folder: Path, count: int) -> bool:
    """Print what opening a cache of many samples takes; return whether that is little enough."""
    latent = torch.zeros(16, 2, 2)
    with LatentWriter(folder, "0" * 64, "fp16", "zeros", shard_bytes=16 * 2**20) as writer:
        for number in range(count):
            writer.add(f"{number:032x}", latent, {"image": f"{number}.png"})
    program = [sys.executable, "-c", OPENS, str(folder)]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    seconds, mib, opened = json.loads(done.stdout)
    print(f"opening an index of {opened} samples: {seconds:.2f} s, {mib:.0f} MiB", flush=True)
    return seconds < TARGET_OPEN_SECONDS and mib < TARGET_OPEN_MIB


if __name__ == "__main__":
    sys.exit(main())
