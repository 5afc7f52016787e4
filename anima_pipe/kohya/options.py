"""The table of options: what each one is called, takes, defaults to, and what becomes of it.

One table for everything: the command line, the loader of TOML files, the help and the docs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from anima_pipe.kohya.rows import (
    ALL,
    EVERY_COMMAND,
    EXPORT,
    FETCH,
    LATENTS,
    TEXT,
    TRAIN,
    Honoured,
    Kind,
    NoOp,
    Option,
    Refused,
)
from anima_pipe.kohya.table.caches import CACHES
from anima_pipe.kohya.table.dataset import DATASET, DATASET_GROUP
from anima_pipe.kohya.table.files import FILES
from anima_pipe.kohya.table.logs import LOGS
from anima_pipe.kohya.table.machine import MACHINE
from anima_pipe.kohya.table.network import NETWORK
from anima_pipe.kohya.table.objective import OBJECTIVE
from anima_pipe.kohya.table.optimizing import OPTIMIZING
from anima_pipe.kohya.table.other_models import OTHER_MODELS
from anima_pipe.kohya.table.saving import SAVING

__all__ = [
    "ALL",
    "DATASET_GROUP",
    "EVERY_COMMAND",
    "EXPORT",
    "FETCH",
    "LATENTS",
    "OPTIONS",
    "TEXT",
    "TRAIN",
    "Honoured",
    "Kind",
    "NoOp",
    "Option",
    "Refused",
    "find_option",
    "nearest_name",
    "options_of",
]

OPTIONS: Final[tuple[Option, ...]] = (
    *FILES,
    *DATASET,
    *CACHES,
    *NETWORK,
    *OPTIMIZING,
    *OBJECTIVE,
    *SAVING,
    *LOGS,
    *MACHINE,
    *OTHER_MODELS,
)
"""Every option, in the order of the help."""

_BY_SPELLING: Final[Mapping[str, Option]] = {
    spelling: option for option in OPTIONS for spelling in option.spellings
}


def find_option(spelling: str) -> Option | None:
    """Return the option of that name or alias, without dashes, or None."""
    return _BY_SPELLING.get(spelling)


def options_of(command: str) -> tuple[Option, ...]:
    """Return the options that a command takes, those it accepts or refuses by name included."""
    return tuple(option for option in OPTIONS if command in option.commands)


def nearest_name(wrong: str, names: Iterable[str] = _BY_SPELLING) -> str | None:
    """Return the name that a misspelt one most likely means, or None if nothing is near."""
    plain = wrong.lower().lstrip("-").replace("-", "_")
    near = difflib.get_close_matches(plain, list(names), n=1, cutoff=0.7)
    return near[0] if near else None
