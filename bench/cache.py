"""Time the latent stage as a whole against the VAE alone, on large JPEGs.

    python bench/cache.py [--images 200] [--resolution 1024] [--workers 8] [--device auto]

Without options, on a processor instead of a GPU: 8 pictures, 256 pixels, 2 workers.

The pictures are JPEGs of 2000x3000 pixels; the VAE is the full-size architecture with random
weights. The stage decodes, resizes, encodes and writes shards, in a process of its own. Alone, the
VAE encodes as many pictures of the same sizes that lie in memory, in batches of the same size. Both
run twice, in turns, and the faster one counts. "filling" leaves out starting and hashing, but holds
what it takes to import torch and to load the VAE: seconds that count the less the more pictures. It
takes a core for the decoders beside those that the VAE works on. On a machine that is busy with
other work, CPU times say more than wall times: all processes of the stage against the VAE alone.
Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from vae import write_random_weights

from anima_pipe.runtime import choose_device
from anima_pipe.shards.statistics import cache_statistics

SIZE = (2000, 3000)
TARGET_RATIO = 1.1


def main() -> int:
    """Compare the stage with the VAE alone; return 1 if it takes longer than it should."""
    options = parse_options()
    if options.side:
        encode_alone(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_random_weights(Path(folder) / "vae.safetensors")
        write_pictures(Path(folder) / "pictures", options.images)
        ratio = compare(Path(folder), options)
    return 0 if ratio < TARGET_RATIO else 1


def parse_options() -> argparse.Namespace:
    """Read the command line; `--side` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = choose_device().type != "cpu"
    parser.add_argument("--images", type=int, default=200 if on_gpu else 8)
    parser.add_argument("--resolution", type=int, default=1024 if on_gpu else 256)
    parser.add_argument("--workers", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs that take as long to decode as photographs: smooth areas with some noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    noise = random.normal(0, 6, (SIZE[1], SIZE[0], 3))
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=90)


def compare(folder: Path, options: argparse.Namespace) -> float:
    """Print and return how much longer the stage takes than the VAE alone."""
    stage: list[float] = []
    stage_cpu: list[float] = []
    filling: list[float] = []
    alone: list[tuple[float, float]] = []
    for number in range(options.rounds):
        cpu = children_cpu_seconds()
        seconds, summary = run_stage(folder, number, options)
        stage.append(seconds)
        stage_cpu.append(children_cpu_seconds() - cpu)
        filling.append(summary["seconds"])
        alone.append(run_alone(folder, folder / f"cache{number}", options))
    best, best_cpu = (min(times) for times in zip(*alone, strict=True))
    ratio = min(stage) / best
    print(
        f"{options.images} JPEGs of {SIZE[0]}x{SIZE[1]} to {options.resolution} px, "
        f"{options.workers} workers: stage {min(stage):.1f} s = {ratio:.2f} x the VAE alone "
        f"({best:.1f} s, {best / options.images * 1000:.0f} ms each); "
        f"filling {min(filling):.1f} s = {min(filling) / best:.2f} x; by CPU time "
        f"{min(stage_cpu):.1f} s against {best_cpu:.1f} s = {min(stage_cpu) / best_cpu:.2f} x",
        flush=True,
    )
    return ratio


def children_cpu_seconds() -> float:
    """Return what the processes that have ended so far took, those that they started included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_stage(folder: Path, number: int, options: argparse.Namespace) -> tuple[float, dict]:
    """Run cache-latents with an empty cache; return its wall time and its summary."""
    summary = folder / f"summary{number}.json"
    command = [sys.executable, "-m", "anima_pipe.cli", "cache-latents"]
    command += ["--dataset_config", str(folder / "pictures"), "--vae"]
    command += [str(folder / "vae.safetensors"), "--cache_dir", str(folder / f"cache{number}")]
    command += ["--resolution", str(options.resolution), "--enable_bucket", "--device"]
    command += [options.device, "--num_workers", str(options.workers)]
    command += ["--vae_batch_size", str(options.batch), "--summary_json", str(summary)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started, json.loads(summary.read_text())


def run_alone(folder: Path, cache: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Encode as many pictures of the bucket that the stage chose, in a process of its own.

    Returns:
        Wall time and CPU time, both in seconds.
    """
    (statistics,) = cache_statistics(cache)
    ((width, height),) = statistics.buckets
    command = [sys.executable, __file__, "--side", f"{width}x{height}", "--folder", str(folder)]
    command += ["--images", str(options.images), "--batch", str(options.batch)]
    command += ["--device", options.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall, cpu = json.loads(done.stdout)
    return wall, cpu


def encode_alone(options: argparse.Namespace) -> None:
    """Print the wall and CPU seconds that the VAE takes for pictures that lie in memory."""
    import torch

    from anima_pipe.encoders import load_vae

    device = choose_device(options.device)
    vae = load_vae(options.folder / "vae.safetensors", dtype=torch.float32, device=device)
    width, height = map(int, options.side.split("x"))
    images = torch.rand(options.batch, 3, height, width) * 2 - 1
    vae.encode(images.to(device)).cpu()  # the first pass chooses kernels
    started, cpu_started = time.perf_counter(), time.process_time()
    for start in range(0, options.images, options.batch):
        count = min(options.batch, options.images - start)
        vae.encode(images[:count].to(device)).cpu()
    print(json.dumps([time.perf_counter() - started, time.process_time() - cpu_started]))


if __name__ == "__main__":
    sys.exit(main())
