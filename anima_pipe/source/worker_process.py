"""What a worker process is: it answers the requests of its parent, one after the other.

`anima_pipe.source.workers` starts them.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import IO, Any, Final, NoReturn

WORKER_NICENESS: Final = 19
"""By how much workers step back behind the process that they decode for."""

KEPT_BYTES: Final = 128 * 2**20
"""Of freed memory that a worker keeps for its next picture: enough for one of 10 megapixels."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""By their numbers in glibc's malloc.h; setting one ends the automatic choice of both."""

_LARGEST_HEAP_BLOCK: Final = 32 * 2**20
"""The most that glibc takes for its M_MMAP_THRESHOLD."""

_LENGTH_BYTES: Final = 8
"""Of the number in front of each message."""


def send(pipe: IO[bytes], message: object) -> None:
    """Send a message.

    Raises:
        OSError: Nobody reads any more.
    """
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """Return the next message.

    Raises:
        EOFError: The pipe ended before it, or within it.
    """
    return _read(pipe, int.from_bytes(_read(pipe, _LENGTH_BYTES), "little"))


def _read(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) < count:
        raise EOFError
    return content


def serve() -> NoReturn:
    """Be a worker: answer the requests at standard input until it ends, then leave at once.

    It ends where the parent closes it or dies, of whatever; it is read by a thread, so that a
    worker leaves in the middle of a picture too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _standard_pipes()
    _step_back()
    _keep_freed_memory()
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_take_in, args=(requests, messages), daemon=True).start()
    while True:
        do, task = pickle.loads(messages.get())  # noqa: S301 - our parent wrote it
        try:
            send(answers, _outcome(do, task))
        except OSError:
            os._exit(0)  # nobody is left to be told


def _standard_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output for messages, away from everything else that may use them.

    What a library prints goes to standard error, and a process that it starts inherits neither: it
    could keep the pipes open beyond this one's death.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if sys.stderr else nothing, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _take_in(requests: IO[bytes], messages: SimpleQueue[bytes]) -> None:
    while True:
        try:
            messages.put(receive(requests))
        except (OSError, EOFError):
            os._exit(0)


def _outcome(do: Callable[[Any], object], task: object) -> tuple[bool, object]:
    """Return whether doing a task succeeded, and what came of it: a result, or what was raised."""
    try:
        return True, do(task)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return False, error


def _step_back() -> None:
    """Let the parent go first.

    Where there are too few cores for all, an encoder's threads would wait for the one of them that
    a decoder holds up. There are always pictures ahead, so decoders have time.
    """
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)


def _keep_freed_memory() -> None:
    """Have the C library keep what one picture took for the next one, where it is glibc.

    It gives large blocks back to the system at once. Getting 60 MB of them anew for every picture,
    cleared, page by page, took as long as decoding it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none, and habits of their own
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
