"""What a run is about, whichever way it trains: what trains, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anima_pipe.hooks.saving import Write
from anima_pipe.trained import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What trains, and what belongs to it."""

    trained: Trained
    write: Write
    """Writes a file of it."""
    after_step: Callable[[], None] | None = None
    """To be done after each of the optimizer's steps."""
