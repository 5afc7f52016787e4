"""What a run is about, whichever way it trains: what trains, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from anima_pipe.hooks.saving import Write
from anima_pipe.optimizing.optimizers import sizes_own_steps
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.trained import Trained

DIGEST_LETTERS: Final = 16
"""Of a file's hash, among the facts that a state records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What trains, and what belongs to it."""

    trained: Trained
    write: Write
    """Writes a file of it."""
    after_step: Callable[[], None] | None = None
    """To be done after each of the optimizer's steps."""


def effective_rate(settings: TrainSettings) -> float | None:
    """Return the learning rate where it says something.

    To an optimizer that finds its own steps a rate says nothing, nor that it is 0.
    """
    return None if sizes_own_steps(settings.optimizer) else settings.learning_rate


def each(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return arguments by name.argument, so that an error can say which one differs."""
    return {f"{name}.{key}": value for key, value in sorted(arguments.items())}
