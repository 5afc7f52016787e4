"""What the machine offers and how the program speaks: device, dtype, seeds, messages."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.errors import ConfigError
from anima_pipe.plain_text import on_one_line
from anima_pipe.secrecy import redacted

if TYPE_CHECKING:
    from types import TracebackType

    import torch

SAID_BEFORE: Final = "ANIMA_PIPE_SAID_BEFORE"
"""The environment's variable that names a file of warnings said so far, each in JSON on a line.

A command that starts others makes it, so that they do not repeat each other.
"""

LOGGER: Final = logging.getLogger("anima_pipe")

ALLOCATOR_SETTINGS: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of the environment that torch's memory on a GPU heeds; older releases only the last."""

DTYPE_NAMES: Final = {
    "no": "float32",
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
"""Kohya's and accelerate's names of precisions, by torch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Which of the processes that were launched together this is."""

    number: int = 0
    """Below `processes`."""
    processes: int = 1

    def takes(self, digits: str) -> bool:
        """Tell whether something is for this process to do.

        It depends on the name alone. So processes need not talk, nor look at the same moment, for
        everything to be done, and done once.

        Args:
            digits: What the thing is called: a hash, in hexadecimal digits.
        """
        return int(digits, 16) % self.processes == self.number


def launched_rank() -> Rank:
    """Return what `accelerate launch` and `torchrun` tell a process by its environment.

    Raises:
        ConfigError: RANK and WORLD_SIZE do not fit together.
    """
    number, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if number.isdecimal() and processes.isdecimal() and int(number) < int(processes):
        return Rank(number=int(number), processes=int(processes))
    raise ConfigError(
        f"the environment says RANK={number} of WORLD_SIZE={processes} processes",
        "start with accelerate launch, or unset both",
    )


class MessageHandler(logging.Handler):
    """Writes messages to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        message = self.format(record)
        if (tqdm := sys.modules.get("tqdm")) is not None:
            tqdm.tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr)  # noqa: T201 - made by `_lines`


class _RedactedRecord(logging.LogRecord):
    """A record of any logger, without what is secret in its message."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Return the message as it may be shown."""
        return redacted(super().getMessage())


def _tell_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(redacted(text), end="", file=sys.stderr)  # noqa: T201 - as Python does it


def setup_messages(*, verbose: bool = False) -> None:
    """Send the program's messages, one plain line each, to standard error."""
    handler = MessageHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False
    # What libraries log, and a crash, may hold addresses as they were given.
    logging.setLogRecordFactory(_RedactedRecord)
    sys.excepthook = _tell_crash
    # Where it is installed it warns, at every start, of kernels for 4-bit models: none are here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def speak_of_errors_only() -> None:
    """Leave messages to the first of several processes that would all say the same."""
    LOGGER.setLevel(logging.ERROR)


def finite_number(text: str) -> float:
    """Return the number that a text says.

    Raises:
        ValueError: It says none, or one that is not finite: no setting is meant to be that.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no finite number")
    return number


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 picture, 2 pictures.

    Args:
        count: How many there are.
        noun: In the singular, of those whose plural ends in a plain s.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say(*lines: str) -> None:
    """Tell the user something worth a line, or several.

    Here and in `warn` and `show`, each of them is one line on the terminal, whatever is in it.
    """
    LOGGER.info("%s", _lines(lines))


def show(*lines: str) -> None:
    """Print what was asked for to standard output."""
    print(_lines(lines))  # noqa: T201 - as it should be printed


def tell_error(*lines: str) -> None:
    """Print what ended a command to standard error, even where messages are held back."""
    print(_lines(lines), file=sys.stderr)  # noqa: T201 - as it should be printed


def warn(*lines: str) -> None:
    """Tell the user something that deserves a look, without stopping.

    What has been said already, here or by a stage before this one, is not said again.
    """
    message = _lines(lines)
    if (said := os.environ.get(SAID_BEFORE)) and not _note_said(Path(said), message):
        return
    LOGGER.warning("warning: %s", message)


def _lines(lines: Iterable[str]) -> str:
    return redacted("\n".join(map(on_one_line, lines)))


def _note_said(file: Path, message: str) -> bool:
    """Note a warning; return whether it is new."""
    line = json.dumps(message)
    if file.is_file() and line in file.read_text(encoding="utf-8").splitlines():
        return False
    with file.open("a", encoding="utf-8") as notes:
        notes.write(f"{line}\n")
    return True


def home() -> Path:
    """Return where what can be fetched again is kept: $ANIMA_PIPE_HOME, or in the user's cache."""
    if own := os.environ.get("ANIMA_PIPE_HOME"):
        return Path(own).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "anima-pipe"


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for a precision by Kohya's name (no, fp32, float, bf16, fp16).

    Raises:
        ConfigError: The name is none of these.
    """
    import torch

    if name not in DTYPE_NAMES:
        raise ConfigError(
            f"unknown precision {name!r}", f"use one of {', '.join(sorted(DTYPE_NAMES))}"
        )
    return getattr(torch, DTYPE_NAMES[name])


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to compute on; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: The device asked for is not there.
    """
    import torch

    let_segments_grow()
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _own_gpu(torch.cuda.device_count()))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {wanted!r} cannot be used: {reason}", "leave --device at auto, or use cpu"
        ) from error
    return device


def let_segments_grow() -> None:
    """Let torch's memory on a GPU grow in place; to be called before the GPU is used.

    Buckets and captions change the shapes from step to step: blocks of fixed sizes would leave
    holes between them. What the user set for torch's memory stays.
    """
    if sys.platform == "linux" and os.environ.keys().isdisjoint(ALLOCATOR_SETTINGS):
        os.environ[ALLOCATOR_SETTINGS[-1]] = "expandable_segments:True"


def claim_device(wanted: str) -> torch.device:
    """Choose the device and, where it is a GPU by its number, make it the one accelerate takes.

    Raises:
        ConfigError: The device asked for is not there, or several processes would share it.
    """
    import torch

    device = choose_device(wanted)
    if not wanted.startswith("cuda:"):
        return device
    processes = launched_rank().processes
    if processes > 1:
        raise ConfigError(
            f"device {wanted!r} names one GPU for {processes} processes",
            "leave --device at auto: each process takes its own; --gpu_ids of accelerate launch "
            "chooses among them",
        )
    torch.cuda.set_device(device)
    return device


def _own_gpu(gpus: int) -> int:
    """Return the GPU that a launcher means this process to use; the first without one."""
    local_rank = os.environ.get("LOCAL_RANK", "0")
    return int(local_rank) % gpus if local_rank.isdecimal() else 0


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part, the same on every platform.

    Randomness drawn from a seed of its own per use (run seed, step, process) needs no generator
    state to be saved: a resumed run derives the same seeds.
    """
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
