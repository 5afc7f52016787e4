"""Many records in little room: columns of plain numbers and bytes, objects only when asked for.

A picture's records as Python objects are a kilobyte, as columns some 70 bytes. So what a caching
stage holds of 20,000 pictures is a megabyte or two, beside the hundreds of its encoder.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")


class MadeWhenAsked(Sequence[Item], Generic[Item]):
    """A sequence whose items are made, each time anew, when they are asked for.

    Args:
        length: How many there are.
        make: Makes the item at a place, from 0 to `length` - 1.
    """

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        self._places = range(length)
        self._make = make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        """Make an item, or several."""
        if isinstance(place, slice):
            return [self._make(number) for number in self._places[place]]
        return self._make(self._places[place])


class FileNames:
    """A list of file names, in as many bytes as they have letters."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._letters = bytearray()
        self._ends = array("Q", [0])
        for name in names:
            self._letters += os.fsencode(name)
            self._ends.append(len(self._letters))

    def __getitem__(self, place: int) -> str:
        return os.fsdecode(bytes(self._letters[self._ends[place] : self._ends[place + 1]]))
