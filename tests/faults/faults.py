"""Faults for processes of the real commands: what they are, and runs of commands that have them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from commands import MODEL, ROOT, TAKES, TRAINING, options

TRIES = int(os.environ.get("ANIMA_PIPE_FAULT_TRIES", "1"))
"""Of each fault that comes at a random moment."""

INJECTED = Path(__file__).parent / "injected"
KILLED = (-signal.SIGKILL, -signal.SIGPROF, -signal.SIGXFSZ)
"""Exit codes of processes that had no say in their end."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong in a process, and when; without a kind, nothing does."""

    kind: str = ""
    """die; full (files grow no further); unreadable, read-only (of files and folders); clock."""
    of: str = "any"
    """The command, or worker."""
    within: str = ""
    """The folder in which files are counted."""
    part: str = ""
    """Of the path of a file that is counted."""
    touches: int = -1
    """So many files are touched before; -1: this is not what decides. Of a clock: times asked."""
    cpu_seconds: float = 0.0
    """So much work is done first, from the first touch on; 0: this is not what decides."""
    bytes: int = -1
    """So large may a file become; -1: this is not what decides."""
    seconds: float = 0.0
    """By which a clock jumps."""
    group: bool = False
    """Whether all processes of the command die with it, as when the power fails."""
    once: str = ""
    """A file that the first process to have the fault makes, so that no other has it."""
    note: str = ""
    """A folder in which processes note that they were struck, or what they did; see `Extent`."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a process does within a folder, undisturbed."""

    touches: int
    cpu_seconds: float
    largest_bytes: int = 0
    """Of the files that it writes."""


def extents(note: Path, largest_bytes: int) -> dict[str, Extent]:
    """Read what processes have noted, by their names; `Fault.note` told them to."""
    noted = {path.stem: json.loads(path.read_text()) for path in note.glob("*.json")}
    return {
        name: Extent(**each, largest_bytes=largest_bytes)
        for name, each in noted.items()
        if each["touches"]
    }


def at_random(
    chance: random.Random, extent: Extent, process: str, within: Path, *, group: bool
) -> Fault:
    """Draw a death: before a file is touched, after some work, or within a write.

    Args:
        chance: Draws.
        extent: How much the process does within the folder, undisturbed.
        process: Its name.
        within: The folder.
        group: Whether all processes of the command die with it.
    """
    death = Fault(kind="die", of=process, within=str(within), group=group)
    way = chance.choice(("touches", "touches", "cpu_seconds", "bytes"))
    if way == "touches" or group:
        return replace(death, touches=chance.randrange(extent.touches))
    if way == "bytes":
        return replace(death, bytes=chance.randrange(extent.largest_bytes))
    return replace(death, cpu_seconds=max(0.001, chance.uniform(0, extent.cpu_seconds)))


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a process came to."""

    code: int
    said: str

    def ok(self) -> Finished:
        """Return itself, having made sure that the command succeeded."""
        assert self.code == 0, self.said
        return self

    @property
    def was_killed(self) -> bool:
        """Whether it ended without a word of its own."""
        return self.code in KILLED


def command(name: str, **values: object) -> list[str]:
    """Return a command with the tiny model's files, on the processor, as one would type it."""
    given: dict[str, object] = {each: MODEL[each] for each in TAKES[name]}
    if name in ("cache-latents", "encode-text", "train", "all"):
        given["device"] = "cpu"
    if name in ("train", "all"):
        given |= TRAINING
    return [sys.executable, "-m", "anima_pipe.cli", name, *options(**given | values)]


def started(
    program: list[str], fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command in a group of its own, with a fault in it."""
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    injected = {"FAULT": json.dumps(asdict(fault)), "PYTHONPATH": str(INJECTED)} if fault else {}
    return subprocess.Popen(
        program,
        cwd=ROOT,
        env={**os.environ, **threads, **(environment or {}), **injected},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> Finished:
    """Wait for all processes of a command: those that it leaves behind have its pipe too."""
    said = process.communicate()[1]
    return Finished(code=process.returncode, said=said)


def killed(process: subprocess.Popen[str]) -> None:
    """End all processes of a command at once, if they have not ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stderr and not process.stderr.closed:
        process.communicate()


def run(
    program: list[str], fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command, with a fault in it, to its end."""
    return finished(started(program, fault, environment))
