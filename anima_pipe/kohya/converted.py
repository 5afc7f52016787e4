"""What a foreign configuration becomes, and what of it found no place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast


class Leftover(NamedTuple):
    """A key of the old file that stands in neither new one."""

    key: str
    why: str
    """What to do about it, or why nothing is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The contents of the new files."""

    train_args: Mapping[str, object]
    dataset: Mapping[str, object] | None = None
    """None: the old file leaves the dataset to a file of its own."""
    prompts: str | None = None
    """Sample prompts that the old file holds itself."""
    unmapped: tuple[Leftover, ...] = ()
    """What has no counterpart."""
    notes: tuple[str, ...] = ()
    """What changed on the way or deserves a look."""

    def unmapped_by_reason(self) -> dict[str, list[str]]:
        """Return the unmapped keys under what is to be said of them."""
        reasons: dict[str, list[str]] = {}
        for key, why in self.unmapped:
            reasons.setdefault(why, []).append(key)
        return reasons


def as_whole(value: object) -> object:
    """Return a whole number where one is meant; anything else is left for the check to object."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def as_number(value: object) -> object:
    """Return a number where one is meant; anything else is left for the check to object."""
    try:
        return float(cast("str", value))
    except (TypeError, ValueError):
        return value
