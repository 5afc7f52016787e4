"""Encode pictures with our VAE and with diffusers' AutoencoderKLQwenImage: time, memory, numbers.

    python bench/vae.py [--sizes 256 512] [--rounds 3] [--threads 2]

The full-size architecture with random weights, fp32 on the CPU. Each side runs in a process of
its own, in turns, so that other load on the machine meets both; where that load is heavy, the
ratio of CPU times with one thread says more than that of wall times. Memory is the peak of the
resident set while encoding, less what was resident once the weights were loaded. Linux only: it
reads /proc.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TARGET_SPEED = 4.0
TARGET_MEMORY = 0.35
TARGET_DIFFERENCE = 1e-4


def main() -> int:
    """Compare both sides at each size; return 1 if the targets at the largest are missed."""
    options = parse_options()
    if options.side:
        measure_one_side(options)
        return 0
    met = False
    with tempfile.TemporaryDirectory() as folder:
        write_random_weights(Path(folder) / "vae.safetensors")
        for size in sorted(options.sizes):
            met = compare(Path(folder), size, options.rounds, options.threads)
    return 0 if met else 1


def parse_options() -> argparse.Namespace:
    """Read the command line; `--side` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description="VAE encode against diffusers.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="edges in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side and size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["ours", "diffusers"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_random_weights(path: Path) -> None:
    """Write a full-size VAE by diffusers' names."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    torch.manual_seed(0)
    save_file(AutoencoderKLQwenImage().state_dict(), path)


def compare(folder: Path, size: int, rounds: int, threads: int) -> bool:
    """Run both sides in turns, print what came out, return whether the targets are met."""
    torch.manual_seed(size)
    save_file({"images": torch.rand(1, 3, size, size) * 2 - 1}, folder / "images.safetensors")
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads)]
    results: dict[str, list[dict[str, float]]] = {"ours": [], "diffusers": []}
    for _ in range(rounds):
        for side, measured in results.items():
            done = subprocess.run(
                [*command, "--side", side], check=True, stdout=subprocess.PIPE, text=True
            )
            measured.append(json.loads(done.stdout))
    seconds = {side: min(one["seconds"] for one in measured) for side, measured in results.items()}
    cpu = {side: min(one["cpu_seconds"] for one in measured) for side, measured in results.items()}
    peaks = {side: max(one["peak_mib"] for one in measured) for side, measured in results.items()}
    means = {side: load_file(folder / f"{side}.safetensors")["mean"] for side in results}
    difference = (means["ours"] - means["diffusers"]).abs().max().item()
    speed, memory = seconds["diffusers"] / seconds["ours"], peaks["ours"] / peaks["diffusers"]
    print(
        f"{size} px: {speed:.2f} x the speed ({seconds['ours']:.2f} s against "
        f"{seconds['diffusers']:.2f} s; by CPU time {cpu['diffusers'] / cpu['ours']:.2f} x), "
        f"{memory:.3f} x the peak memory above the weights "
        f"({peaks['ours']:.0f} MiB against {peaks['diffusers']:.0f} MiB), largest difference "
        f"{difference:.1e} of {means['diffusers'].abs().max():.2g}",
        flush=True,
    )
    return speed >= TARGET_SPEED and memory <= TARGET_MEMORY and difference <= TARGET_DIFFERENCE


def measure_one_side(options: argparse.Namespace) -> None:
    """Encode in this process; print the time of the fastest of three and the peak of all."""
    torch.set_num_threads(options.threads)
    images = load_file(options.folder / "images.safetensors")["images"]
    load = load_ours if options.side == "ours" else load_diffusers
    encode = load(options.folder / "vae.safetensors")
    loaded_mib = resident_mib("VmRSS")
    # 5 resets the peak to what is resident now: loading has a peak of its own.
    Path("/proc/self/clear_refs").write_text("5")
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    means: list[torch.Tensor] = []
    for _ in range(3):
        start, cpu_start = time.perf_counter(), time.process_time()
        means.append(encode(images))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak_mib = resident_mib("VmHWM") - loaded_mib
    save_file({"mean": means[-1]}, options.folder / f"{options.side}.safetensors")
    measured = {"seconds": min(seconds), "cpu_seconds": min(cpu_seconds), "peak_mib": peak_mib}
    print(json.dumps(measured))


def load_ours(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load our VAE; return what encodes pictures to the posterior mean."""
    from anima_pipe.encoders import load_vae

    return load_vae(path).posterior_mean


def load_diffusers(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load diffusers' VAE; return what encodes pictures to the posterior mean."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage().eval()
    vae.load_state_dict(load_file(path))

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(images.unsqueeze(2), return_dict=False)[0]
        return posterior.mean.squeeze(2).contiguous()

    return encode


def resident_mib(field: str) -> float:
    """Return VmRSS (now) or VmHWM (the peak) of this process."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", status)
    assert match, f"no {field} in /proc/self/status"
    return int(match[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
