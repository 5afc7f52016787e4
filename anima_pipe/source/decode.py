"""Decoding many pictures in worker processes, while their caller encodes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from anima_pipe.errors import DataError, PipeError
from anima_pipe.records import LatentRequest, MaskRequest, Skipped

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    import torch
    from numpy.typing import NDArray

Request = TypeVar("Request", LatentRequest, MaskRequest)
_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")

Loader: TypeAlias = "Callable[[Request], NDArray[Any]]"
"""What decodes one request, such as `load_pixels`; a function that a worker can import."""

BATCHES_AHEAD = 2
"""Batches per worker that are decoded, or being decoded, before the caller takes them."""

WORKER_NICENESS: Final = 19
"""By how much workers step back behind the process that they decode for."""

KEPT_BYTES: Final = 128 * 2**20
"""Of freed memory that a worker keeps for its next picture: enough for one of 10 megapixels."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""By their numbers in glibc's malloc.h; setting one ends the automatic choice of both."""

_LARGEST_HEAP_BLOCK: Final = 32 * 2**20
"""The most that glibc takes for its M_MMAP_THRESHOLD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBatch(Generic[Request]):
    """Pictures or masks of one bucket, and those that could not be decoded."""

    requests: list[Request]
    """May be empty, if nothing but failures is left of the batch."""
    pixels: torch.Tensor
    """What the loader returns, stacked: UInt8[B, height, width, 3] of `load_pixels`."""
    failures: list[Skipped]
    """One per request that is missing from `requests`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded(Generic[Request]):
    """What a worker sends back."""

    requests: list[Request]
    pixels: list[NDArray[Any]]
    failures: list[Skipped]


def decode_in_workers(
    load: Loader[Request], requests: Iterable[Request], batch_size: int, num_workers: int
) -> Iterator[DecodedBatch[Request]]:
    """Decode pictures, or masks, into batches of one bucket each.

    The batches and their order depend on the order of the requests alone: a batch ends where
    another bucket begins. Put requests for the same picture side by side: it is then decoded once
    for both orientations.

    Args:
        load: `load_pixels` or `load_mask`.
        requests: What to decode, one bucket after the other; taken as they are needed.
        batch_size: Pictures per batch, at least 1; the last batch of a bucket may be smaller.
        num_workers: Processes that decode; 0: decode in this one, when a batch is asked for.

    Yields:
        Batches. A picture that fails is listed in its batch and does not end the run.

    Raises:
        PipeError: A worker process died.
    """
    batches = _batches(requests, batch_size)
    decode = partial(_decode, load)
    decoded = in_processes(decode, batches, num_workers) if num_workers else map(decode, batches)
    for batch in decoded:
        yield DecodedBatch(
            requests=batch.requests, pixels=_stacked(batch.pixels), failures=batch.failures
        )


def _batches(requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
    for _, members in groupby(requests, key=lambda request: request.choice.bucket):
        while batch := list(islice(members, batch_size)):
            yield batch


def _stacked(pixels: list[NDArray[Any]]) -> torch.Tensor:
    # Here and not at the top: workers import this module, and have no other need of torch.
    import torch

    if not pixels:
        return torch.empty((0, 0, 0, 3), dtype=torch.uint8)
    return torch.stack([torch.from_numpy(picture) for picture in pixels])


def _decode(load: Loader[Request], batch: list[Request]) -> _Decoded[Request]:
    """Decode one batch; runs in a worker."""
    decoded: _Decoded[Request] = _Decoded(requests=[], pixels=[], failures=[])
    for as_it_is, group in groupby(batch, key=lambda r: replace(r, key="", flipped=False)):
        orientations = list(group)
        try:
            upright = load(as_it_is)
        except DataError as error:
            decoded.failures.extend(
                Skipped(name=request.name, reason=error.problem) for request in orientations
            )
            continue
        decoded.requests.extend(orientations)
        decoded.pixels.extend(
            upright[:, ::-1].copy() if request.flipped else upright for request in orientations
        )
    return decoded


def in_processes(
    decode: Callable[[_Batch], _Result], batches: Iterable[_Batch], num_workers: int
) -> Iterator[_Result]:
    """Decode batches in order, a bounded number of them ahead.

    A pool and not a torch DataLoader: arrays come back through pipes instead of shared memory,
    which containers have little of; workers start without torch; and a death is seen at once.

    Raises:
        PipeError: A worker process died.
    """
    pool = ProcessPoolExecutor(
        num_workers, mp_context=_process_context(), initializer=_become_a_worker
    )
    ahead: deque[Future[_Result]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(decode, batch))
            if len(ahead) > num_workers * BATCHES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise PipeError(
            "a process that decodes pictures died, most likely for want of memory",
            "run again with fewer --num_workers (0 decodes without processes), or free memory",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _process_context() -> BaseContext:
    # Never fork: a copy of a process with threads and CUDA in it may hang.
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def _become_a_worker() -> None:
    """Leave interrupts to the parent, end when it ends even if killed, and stay out of its way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_the_parent, daemon=True).start()
    if hasattr(os, "nice"):
        # Where there are too few cores for all, an encoder's threads would wait for the one of them
        # that a decoder holds up. There are always pictures ahead, so decoders have time.
        os.nice(WORKER_NICENESS)
    _keep_freed_memory()


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


def _exit_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
