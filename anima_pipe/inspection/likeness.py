"""Which pictures look alike: by difference hashes, compared without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_SIDE: Final = 8
"""A hash has so many rows of so many bits."""

ALIKE_UP_TO: Final = 5
"""Bits of 64 in which two pictures that look alike may differ: other sizes and compressions of a
picture differ in 0 to 3, small edits in up to 5, different pictures in 20 to 40."""

_FLAT: Final = 3.0
"""Standard deviation, of 255, below which a picture shows nothing that a hash could hold."""


def difference_hash(gray: NDArray[np.uint8]) -> int | None:
    """Return a picture's difference hash: where it gets darker from left to right.

    Args:
        gray: UInt8[8, 9], the whole picture shrunk to that, whatever its shape.

    Returns:
        64 bits, row by row, the first one the highest; None for a picture of nearly one colour,
        all of which would have the same.
    """
    if gray.std() < _FLAT:
        return None
    darker = gray[:, :-1] > gray[:, 1:]
    return int.from_bytes(np.packbits(darker).tobytes(), "big")


def alike(hashes: Sequence[int | None]) -> list[list[int]]:
    """Group pictures that look alike.

    Two hashes that differ in at most n bits agree in one of n + 1 bands of them. So only those that
    share a band are compared: of 20,000 pictures a few hundred thousand pairs, not 200 million.

    Args:
        hashes: Of each picture; None is like nothing.

    Returns:
        Groups of at least two places in `hashes`, in ascending order. A group holds whatever a
        chain of alike pictures connects.
    """
    places: dict[int, list[int]] = {}
    for place, value in enumerate(hashes):
        if value is not None:
            places.setdefault(value, []).append(place)
    distinct = np.array(sorted(places), np.uint64)
    leaders = list(range(len(distinct)))
    for left, right in _near_pairs(distinct):
        first, second = sorted((_leader(leaders, left), _leader(leaders, right)))
        leaders[second] = first
    groups: dict[int, list[int]] = {}
    for number, value in enumerate(distinct.tolist()):
        groups.setdefault(_leader(leaders, number), []).extend(places[value])
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _near_pairs(values: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield the places of values that differ in few bits; some pairs several times."""
    edges = np.linspace(0, HASH_SIDE * HASH_SIDE, ALIKE_UP_TO + 2).astype(int)
    for start, end in pairwise(edges.tolist()):
        mask = np.uint64(((1 << (end - start)) - 1) << start)
        bands = values & mask
        order = np.argsort(bands, kind="stable")
        starts = np.arange(len(order))
        for shift in range(1, len(order)):
            # Sorted: who has another band than the one `shift` behind has it from there on.
            starts = starts[starts < len(order) - shift]
            starts = starts[bands[order[starts]] == bands[order[starts + shift]]]
            if not len(starts):
                break
            left, right = order[starts], order[starts + shift]
            near = np.bitwise_count(values[left] ^ values[right]) <= ALIKE_UP_TO
            yield from zip(left[near].tolist(), right[near].tolist(), strict=True)


def _leader(leaders: list[int], number: int) -> int:
    while leaders[number] != number:
        leaders[number] = leaders[leaders[number]]
        number = leaders[number]
    return number
