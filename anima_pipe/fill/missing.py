"""What is wanted and not there, each process's part of it, and what filling it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from anima_pipe.records import Skipped
from anima_pipe.runtime import Rank
from anima_pipe.shards.contents import Held
from anima_pipe.shards.index import Problem
from anima_pipe.shards.packed_keys import PackedKeys
from anima_pipe.source.damage import Damaged

ALONE: Final = Rank()


@dataclass(slots=True, kw_only=True)
class FillSummary:
    """What filling a cache came to."""

    encoded: int = 0
    reused: int = 0
    elsewhere: int = 0
    """Missing, and for other processes to encode."""
    failed: list[Skipped] = field(default_factory=list[Skipped])
    """Pictures and captions that were wanted and could not be encoded, each named once."""
    damaged: list[Damaged] = field(default_factory=list[Damaged])
    """Pictures that were decoded, but not to what was saved; what came of them is cached."""
    lost: set[str] = field(default_factory=set[str])
    """Keys of that."""
    problems: list[Problem] = field(default_factory=list[Problem])
    """What was found wrong in the cache as it was."""
    shards: int = 0
    """Written in this run."""
    kept_in_bf16: int = 0
    """Texts in an fp16 cache that fp16 cannot hold."""
    long: list[Skipped] = field(default_factory=list[Skipped])
    """Texts that are kept whole although they have more than `T5_LIMIT` tokens."""
    seconds: float = 0.0


def divide(
    wanted: Iterable[str], held: Held, share: Callable[[str], str], rank: Rank
) -> tuple[PackedKeys, FillSummary]:
    """Return the missing keys that are this process's to fill, and the summary as it begins.

    Args:
        wanted: All keys that are needed.
        held: What the cache holds.
        share: What decides which process a key is for. For pictures it is their content, so that
            both orientations of one are decoded in the same process.
        rank: This process.
    """
    summary = FillSummary(problems=held.problems)
    own = PackedKeys()
    for key in wanted:
        if key in held.keys:
            summary.reused += 1
        elif rank.takes(share(key)):
            own.append(key)
        else:
            summary.elsewhere += 1
    return own, summary
