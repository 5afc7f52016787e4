"""Trains the demo for thousands of steps and tells whether anything grows: `make soak`.

Previews, saves, states, validation, what is measured of leakage, logs and caption variants are all
on. Memory, open files, threads and work per step are looked at from outside while the training
runs. After a first part, in which buffers and caches fill, none of them may be more at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from anima_pipe import demo

LOOKING_SECONDS = 2.0
LEAST_LOOKS = 3
PARTS = 5
"""The second is compared with the last: the first fills buffers and caches."""

LIMITS = {"resident_mib": 1.05, "open_files": 1.0, "threads": 1.0, "cpu_seconds_per_step": 1.1}
"""How many times as much it may be at the end. Work varies with a machine's other work, too."""

SAVES = 20
"""In the run; previews and states come as often, validation twice."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a process had at one moment."""

    step: int
    resident_mib: float
    open_files: int
    threads: int
    cpu_seconds: float


def main() -> None:
    """Train, look, tell; exit with 1 if anything has grown."""
    parser = argparse.ArgumentParser(description="Train the demo for long, and see what grows.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("output/soak"))
    given = parser.parse_args()
    if any(given.out.glob("*")):
        sys.exit(f"{given.out} is not empty: remove it, or give another --out")
    looks = watched(command(given.steps, given.out), given.out)
    lines = [f"{json.dumps(asdict(look))}\n" for look in looks]
    (given.out / "looks.jsonl").write_text("".join(lines))
    figures = compared(looks)
    grown = [name for name, (before, after) in figures.items() if after > before * LIMITS[name]]
    for name, (before, after) in figures.items():
        told = "GREW" if name in grown else "flat"
        print(f"{name:22} {before:10.3f} then {after:10.3f}  {told}")
    if grown:
        sys.exit(f"grew: {', '.join(grown)}")


def command(steps: int, out: Path) -> list[str]:
    """Return a training with everything that comes up between steps."""
    often = max(1, steps // SAVES)
    given = {
        **demo.options(),
        "max_train_steps": steps,
        "device": "cpu",
        "output_dir": out,
        "cache_dir": out / "cache",
        "logging_dir": out / "logs",
        "log_with": "tensorboard",
        "save_every_n_steps": often,
        "save_last_n_steps": 2 * often,
        "sample_every_n_steps": often,
        "validation_split": 0.1,
        "validate_every_n_steps": max(1, often // 2),
        "caption_variants": 6,
        "ema_decay": 0.99,
    }
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "anima_pipe.cli", "train", "--save_state", *words]


def watched(program: list[str], out: Path) -> list[Look]:
    """Run a training to its end; return what its process had, look by look."""
    looks: list[Look] = []
    with subprocess.Popen(program) as training:  # noqa: S603 - our own command line
        process = psutil.Process(training.pid)
        while training.poll() is None:
            time.sleep(LOOKING_SECONDS)
            step = last_step(out)
            try:
                if step:
                    looks.append(look_at(process, step))
            except psutil.NoSuchProcess:
                break
    if training.returncode:
        sys.exit(f"the training ended with {training.returncode}")
    return looks


def look_at(process: psutil.Process, step: int) -> Look:
    """Return what a process has now."""
    with process.oneshot():
        times = process.cpu_times()
        return Look(
            step=step,
            resident_mib=process.memory_info().rss / 2**20,
            open_files=process.num_fds(),
            threads=process.num_threads(),
            cpu_seconds=times.user + times.system,
        )


def last_step(out: Path) -> int:
    """Return the step that the run's log is at; 0: it has not begun."""
    for log in out.glob("logs/*/metrics.jsonl"):
        lines = log.read_bytes().rpartition(b"\n")[0].splitlines()[-1:]
        return json.loads(lines[0])["step"] if lines else 0
    return 0


def compared(looks: Sequence[Look]) -> dict[str, tuple[float, float]]:
    """Return each figure in the second part of the run and in the last.

    Raises:
        SystemExit: The run was too short to tell.
    """
    whole = looks[-1].step if looks else 0
    before, after = (
        [look for look in looks if (look.step - 1) * PARTS // whole == part]
        for part in (1, PARTS - 1)
    )
    if min(len(before), len(after)) < LEAST_LOOKS:
        sys.exit(f"{len(looks)} looks are too few to tell anything: train for more --steps")
    figures = {
        name: tuple(
            statistics.median(getattr(look, name) for look in part) for part in (before, after)
        )
        for name in ("resident_mib", "open_files", "threads")
    }
    work = (work_per_step(before), work_per_step(after))
    return {**figures, "cpu_seconds_per_step": work}


def work_per_step(part: Sequence[Look]) -> float:
    """Return the processor's seconds for a step, with all that comes up between steps."""
    first, last = part[0], part[-1]
    return (last.cpu_seconds - first.cpu_seconds) / max(1, last.step - first.step)


if __name__ == "__main__":
    main()
