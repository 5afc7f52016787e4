"""Decoding many pictures in worker processes, while their caller encodes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from anima_pipe.errors import DataError, PipeError
from anima_pipe.records import LatentRequest, Skipped
from anima_pipe.source.images import load_pixels

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    import numpy as np
    import torch
    from numpy.typing import NDArray

BATCHES_AHEAD = 2
"""Batches per worker that are decoded, or being decoded, before the caller takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBatch:
    """Pictures of one bucket, ready to encode, and those that could not be decoded."""

    requests: list[LatentRequest]
    """May be empty, if nothing but failures is left of the batch."""
    pixels: torch.Tensor
    """UInt8[B, height, width, 3], one per request."""
    failures: list[Skipped]
    """One per request that is missing from `requests`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    """What a worker sends back."""

    requests: list[LatentRequest]
    pixels: list[NDArray[np.uint8]]
    failures: list[Skipped]


def decode_in_workers(
    requests: Iterable[LatentRequest], batch_size: int, num_workers: int
) -> Iterator[DecodedBatch]:
    """Decode pictures into batches of one bucket each.

    The batches and their order depend on the order of the requests alone: buckets come in the
    order in which they first appear. Put requests for the same picture side by side: it is then
    decoded once for both orientations.

    Args:
        requests: What to decode.
        batch_size: Pictures per batch, at least 1; the last batch of a bucket may be smaller.
        num_workers: Processes that decode; 0: decode in this one, when a batch is asked for.

    Yields:
        Batches. A picture that fails is listed in its batch and does not end the run.

    Raises:
        PipeError: A worker process died.
    """
    batches = list(_batches(requests, batch_size))
    num_workers = min(num_workers, len(batches))
    decoded = _in_processes(batches, num_workers) if num_workers else map(_decode, batches)
    for batch in decoded:
        yield DecodedBatch(
            requests=batch.requests, pixels=_stacked(batch.pixels), failures=batch.failures
        )


def _batches(requests: Iterable[LatentRequest], batch_size: int) -> Iterator[list[LatentRequest]]:
    by_bucket: dict[tuple[int, int], list[LatentRequest]] = {}
    for request in requests:
        by_bucket.setdefault(request.choice.bucket, []).append(request)
    for members in by_bucket.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def _stacked(pixels: list[NDArray[np.uint8]]) -> torch.Tensor:
    # Here and not at the top: workers import this module, and have no other need of torch.
    import torch

    if not pixels:
        return torch.empty((0, 0, 0, 3), dtype=torch.uint8)
    return torch.stack([torch.from_numpy(picture) for picture in pixels])


def _decode(batch: list[LatentRequest]) -> _Decoded:
    """Decode one batch; runs in a worker."""
    decoded = _Decoded(requests=[], pixels=[], failures=[])
    for _, group in groupby(batch, key=lambda r: (r.image, r.choice, r.interpolation)):
        orientations = list(group)
        try:
            upright = load_pixels(replace(orientations[0], flipped=False))
        except DataError as error:
            decoded.failures.extend(
                Skipped(name=str(request.image.path), reason=error.problem)
                for request in orientations
            )
            continue
        decoded.requests.extend(orientations)
        decoded.pixels.extend(
            upright[:, ::-1].copy() if request.flipped else upright for request in orientations
        )
    return decoded


def _in_processes(batches: list[list[LatentRequest]], num_workers: int) -> Iterator[_Decoded]:
    """Decode batches in order, a bounded number of them ahead.

    A pool and not a torch DataLoader: arrays come back through pipes instead of shared memory,
    which containers have little of; workers start without torch; and a death is seen at once.
    """
    pool = ProcessPoolExecutor(
        num_workers, mp_context=_process_context(), initializer=_live_with_the_parent
    )
    ahead: deque[Future[_Decoded]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(_decode, batch))
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


def _live_with_the_parent() -> None:
    """Leave interrupts to the parent, and end when it ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_the_parent, daemon=True).start()


def _exit_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
