"""Decoding many pictures in worker processes, while their caller encodes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from anima_pipe.errors import DataError
from anima_pipe.records import ImageFile, LatentRequest, MaskRequest, Skipped
from anima_pipe.source.damage import Damaged, damage_of
from anima_pipe.source.deadly import deadly_picture
from anima_pipe.source.images import decoding_cost
from anima_pipe.source.workers import Care, WorkerDiedError, in_processes

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Request = TypeVar("Request", LatentRequest, MaskRequest)

Loader: TypeAlias = "Callable[[Request], NDArray[Any]]"
"""What decodes one request, such as `load_pixels`; a function that a worker can import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBatch(Generic[Request]):
    """Pictures or masks of one bucket, and those that could not be decoded."""

    requests: list[Request]
    """May be empty, if nothing but failures is left of the batch."""
    pixels: torch.Tensor
    """What the loader returns, stacked: UInt8[B, height, width, 3] of `load_pixels`."""
    failures: list[Skipped]
    """One per request that is missing from `requests`."""
    deadly: list[ImageFile]
    """Those of them that kill whatever process decodes them."""
    damaged: list[Damaged]
    """Those that were decoded, but not to what was saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded(Generic[Request]):
    """What a worker sends back."""

    requests: list[Request]
    pixels: list[NDArray[Any]]
    failures: list[Skipped]
    deadly: list[ImageFile]
    damaged: list[Damaged]


def decode_in_workers(
    load: Loader[Request], requests: Iterable[Request], batch_size: int, num_workers: int
) -> Generator[DecodedBatch[Request]]:
    """Decode pictures, or masks, into batches of one bucket each.

    The batches and their order depend on the order of the requests alone: a batch ends where
    another bucket begins. Put requests for the same picture side by side: it is then decoded once
    for both orientations.

    Args:
        load: `load_pixels` or `load_mask`.
        requests: What to decode, one bucket after the other; taken as they are needed.
        batch_size: Pictures per batch, at least 1; the last batch of a bucket may be smaller.
        num_workers: Processes that decode; 0: decode in this one, when a batch is asked for, but
            what may end it; see `in_processes`.

    Yields:
        Batches. A picture that fails, or kills its process, is listed in its batch and does not end
        the run. Close the generator to end the processes at once.

    Raises:
        WorkerDiedError: Processes died of too many pictures; it says which one had the last.
        PipeError: One cannot be started.
    """
    batches = _batches(requests, batch_size)
    care = Care[list[Request], _Decoded[Request]](cost=_bytes_at_once, joined=_joined)
    with closing(in_processes(partial(_decode, load), batches, num_workers, care)) as decoded:
        for batch in decoded:
            yield DecodedBatch(
                requests=batch.requests,
                pixels=_stacked(batch.pixels),
                failures=batch.failures,
                deadly=batch.deadly,
                damaged=batch.damaged,
            )


def _batches(requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
    for _, members in groupby(requests, key=lambda request: request.choice.bucket):
        while batch := list(islice(members, batch_size)):
            yield batch


def _bytes_at_once(batch: Sequence[LatentRequest | MaskRequest]) -> int:
    # One picture after the other: what is kept of those before has the small sizes of buckets.
    return max(decoding_cost(request.image.size) for request in batch)


def _joined(
    outcomes: Sequence[_Decoded[Request] | WorkerDiedError],
) -> _Decoded[Request]:
    """Return the result of a task of which each picture was tried alone."""
    joined: _Decoded[Request] = _nothing()
    for outcome in outcomes:
        if isinstance(outcome, WorkerDiedError):
            requests = cast("Sequence[LatentRequest | MaskRequest]", outcome.in_flight)
            image = requests[0].image
            joined.deadly.append(image)
            reason = deadly_picture(image.path).problem
            joined.failures.extend(Skipped(name=each.name, reason=reason) for each in requests)
        else:
            joined.requests.extend(outcome.requests)
            joined.pixels.extend(outcome.pixels)
            joined.failures.extend(outcome.failures)
            joined.damaged.extend(outcome.damaged)
    return joined


def _nothing() -> _Decoded[Request]:
    return _Decoded(requests=[], pixels=[], failures=[], deadly=[], damaged=[])


def _stacked(pixels: list[NDArray[Any]]) -> torch.Tensor:
    # Here and not at the top: workers import this module, and have no other need of torch.
    import torch

    if not pixels:
        return torch.empty((0, 0, 0, 3), dtype=torch.uint8)
    return torch.stack([torch.from_numpy(picture) for picture in pixels])


def _decode(load: Loader[Request], batch: list[Request]) -> _Decoded[Request]:
    """Decode one batch; runs in a worker."""
    decoded: _Decoded[Request] = _nothing()
    for as_it_is, group in groupby(batch, key=lambda r: replace(r, key="", flipped=False)):
        orientations = list(group)
        try:
            upright = load(as_it_is)
        except DataError as error:
            decoded.failures.extend(
                Skipped(name=request.name, reason=error.problem) for request in orientations
            )
            continue
        with suppress(OSError):  # it was there just now, and has been decoded
            if reason := damage_of(as_it_is.image.path):
                decoded.damaged.append(Damaged(as_it_is.image, reason))
        decoded.requests.extend(orientations)
        decoded.pixels.extend(
            upright[:, ::-1].copy() if request.flipped else upright for request in orientations
        )
    return decoded
