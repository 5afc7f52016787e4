"""Run both caching stages twice over many tiny pictures: the second time there is nothing to do.

    python bench/nothing_to_do.py [--images 1000 5000 20000]

The pictures are 16x16 pixels, all different, each with a caption, in one folder; latents and texts
come from the embedded tiny model. Printed are seconds and peak memory of every command as the shell
starts it, the first and the second time, and which of the heavy packages the second one imported;
at the end, how much the most pictures add to the peak of the fewest. Linux and macOS: it asks the
system for the peak of a finished process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from anima_pipe import demo

SETTLED_SECONDS = 3
TARGET_IMAGES = 20_000
TARGET_SECONDS = 10.0
HEAVY = ("torch", "transformers", "diffusers")

STAGES = {
    "cache-latents": [
        *("--vae", str(demo.DEMO_VAE), "--vae_batch_size", "64"),
        *("--resolution", "16", "--min_bucket_reso", "16", "--num_workers", "1"),
    ],
    "encode-text": [
        *("--qwen3", str(demo.DEMO_QWEN), "--t5_tokenizer_dir", str(demo.DEMO_T5_TOKENIZER)),
        *("--text_encoder_batch_size", "64", "--resolution", "16"),
    ],
}

PEAKS = [f"{stage}, {when}" for stage in STAGES for when in ("first", "then")]


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished command."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def main() -> int:
    """Measure at every number of pictures; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000, TARGET_IMAGES])
    together = 0.0
    counts = sorted(parser.parse_args().images)
    peaks: dict[int, list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            together, peaks[count] = measure(Path(folder), count)
    for what, few, many in zip(PEAKS, peaks[counts[0]], peaks[counts[-1]], strict=True):
        grown = f"{many - few:+.1f} MiB, {many / few:.2f} x"
        print(f"{what:<22} peak {few:.1f} to {many:.1f} MiB: {grown}")
    return 0 if together < TARGET_SECONDS else 1


def measure(folder: Path, count: int) -> tuple[float, list[float]]:
    """Print what both stages take, twice.

    Returns:
        The seconds of both together the second time, and the peaks in MiB that `PEAKS` names.
    """
    dataset = write_dataset(folder, count)
    together, peaks = 0.0, list[float]()
    for stage, options in STAGES.items():
        command = [stage, *options, "--dataset_config", str(dataset), "--device", "cpu"]
        command += ["--cache_dir", str(folder / "cache")]
        first, second = run(command), run(command)
        together += second.seconds
        peaks += [first.peak_mib, second.peak_mib]
        print(
            f"{count:>6} pictures, {stage:<13} first {first.seconds:.1f} s, "
            f"then {second.seconds:.2f} s: {first.seconds / second.seconds:.0f} x faster "
            f"(CPU {second.cpu_seconds:.2f} s); "
            f"peak {first.peak_mib:.0f} MiB, then {second.peak_mib:.0f} MiB; "
            f"imported then: {', '.join(heavy_imports(command)) or 'nothing heavy'}",
            flush=True,
        )
    print(f"{count:>6} pictures, both stages with nothing to do: {together:.2f} s", flush=True)
    return together, peaks


def write_dataset(folder: Path, count: int) -> Path:
    """Write pictures, captions and the dataset.toml that names their folder."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(count):
        colour = (number % 251, number // 251 % 251, number % 13)
        Image.new("RGB", (16, 16), colour).save(pictures / f"{number:06d}.png")
        (pictures / f"{number:06d}.txt").write_text(f"fox, number {number}")
    dataset = folder / "dataset.toml"
    dataset.write_text(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{pictures}"\n')
    # Files that have just been written are not remembered: they may still be changing.
    time.sleep(SETTLED_SECONDS)
    return dataset


def run(command: list[str]) -> Measured:
    """Run a command in a process of its own, with its messages thrown away."""
    started = time.perf_counter()
    with Path(os.devnull).open("wb") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 2)]
        program = [sys.executable, "-m", "anima_pipe.cli", *command]
        child = os.posix_spawn(sys.executable, program, os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    return Measured(
        seconds=time.perf_counter() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / per_mib,
    )


def heavy_imports(command: list[str]) -> list[str]:
    """Return which packages a command imports that it can do without when nothing is missing."""
    script = (
        "import sys; from anima_pipe.cli.main import main\n"
        "try: main()\n"
        f"finally: print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    program = [sys.executable, "-c", script, *command]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    return done.stdout.split()


if __name__ == "__main__":
    sys.exit(main())
