"""Runs the parts one by one and writes down what they find as it comes.

A part is a process of its own with a limit: one that fails, hangs or takes the card down with it
costs itself alone. Parts that no time is left for are named as not run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gpu.report import write_report
from gpu.results import read_rows

TOTAL_SECONDS = 460.0
"""After which no part is left running: eight minutes less what comes before and after."""
SMALL_FACTOR = 4.0
"""Of all limits in a rehearsal: a processor may have other work."""
GRACE_SECONDS = 3.0
"""Between asking a part to end and ending it."""

TERMINATED = 128 + signal.SIGTERM
"""The exit code by which shells name that signal."""

LIMITS = {
    "card": 45,
    "proof_golden": 45,
    "proof_training": 60,
    "proof_encoders": 45,
    "proof_resume": 60,
    "proof_processes": 75,
    "proof_compile": 75,
    "proof_demo": 100,
    "figures_checkpoint": 75,
    "figures_step": 130,
    "figures_finetuning": 75,
    "figures_drawing": 45,
    "figures_encoding": 60,
    "figures_profile": 45,
    "figures_peers": 100,
}
"""Parts in the order they run, with the seconds that each may take: what is worth most and costs
least comes first. Together they are more than there is: few come near their limit."""


@dataclass(slots=True, kw_only=True)
class Part:
    """One part and how it ended."""

    name: str
    limit: float
    """Seconds."""
    state: str = "not run"
    """ok, failed, killed at its limit, or not run."""
    seconds: float = 0.0
    rows: list[dict[str, object]] = field(default_factory=list)


def main() -> int:
    """Run the parts; return 1 unless all of them are in order."""
    options = read_options()
    # Whoever ends this process means the part that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() - options.spent
    parts = [Part(name=name, limit=options.limits[name]) for name in options.parts]
    about = {"device": options.device, "small": options.small, "started": time.time()}
    with (options.out / "gpu.log").open("w", encoding="utf-8") as log:
        for part in parts:
            left = options.seconds - (time.monotonic() - started)
            if left > 0:
                run(part, min(part.limit, left), options, log)
            print(f"{part.name:<20}{part.state:<10}{part.seconds:6.1f} s", flush=True)
            seconds = round(time.monotonic() - started, 1)
            write_report(options.out, {**about, "seconds": seconds}, parts)
    print(f"{options.out / 'gpu.md'}")
    return int(any(part.state != "ok" for part in parts))


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, .md, .log")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models: a rehearsal")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=[*LIMITS], metavar="NAME")
    parser.add_argument("--limit", nargs="+", default=[], metavar="NAME=SECONDS")
    parser.add_argument("--seconds", type=float, help=f"for all parts [{TOTAL_SECONDS:.0f}]")
    parser.add_argument(
        "--checkpoint", type=Path, help="measure this transformer, not a random one"
    )
    parser.add_argument("--scratch", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--spent", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    factor = SMALL_FACTOR if options.small else 1.0
    if options.seconds is None:
        options.seconds = factor * TOTAL_SECONDS
    options.limits = {name: factor * limit for name, limit in LIMITS.items()}
    for given in options.limit:
        name, _, limit = given.partition("=")
        if name not in LIMITS:
            parser.error(f"--limit {given}: the parts are {', '.join(LIMITS)}")
        options.limits[name] = float(limit)
    return options


def run(part: Part, limit: float, options: argparse.Namespace, log: IO[str]) -> None:
    """Run one part in a process of its own, for so many seconds at most."""
    rows = options.scratch / f"{part.name}.jsonl"
    command = [sys.executable, "-m", f"gpu.{part.name}", "--device", options.device]
    command += ["--scratch", str(options.scratch), "--results", str(rows)]
    command += ["--small"] * options.small
    if options.checkpoint:
        command += ["--checkpoint", str(options.checkpoint)]
    print(f"\n== {part.name}", file=log, flush=True)
    began = time.monotonic()
    # A group of its own: what a part has started ends with it.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        process.wait(limit)
        part.state = "failed" if process.returncode else "ok"
    except subprocess.TimeoutExpired:
        part.state = "killed"
        print(f"killed at its limit of {limit:g} s", file=log, flush=True)
    finally:
        end_group(process)
    part.seconds = round(time.monotonic() - began, 1)
    part.rows = read_rows(rows)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started: first kindly, where it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
