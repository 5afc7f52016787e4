"""Options, keys of dataset.toml and network_args that a word concerns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.options import OPTIONS
from anima_pipe.kohya.rows import Honoured, NoOp, Option
from anima_pipe.kohya.table.network_args import NETWORK_ARGS


class Match(NamedTuple):
    """One thing that a word concerns."""

    name: str
    kind: str
    """Where it is written: "option", "network_args", "dataset.toml"."""
    help: str


def search(word: str) -> list[Match]:
    """Return what has a word that begins so in its name, help or heading, in any case.

    What an option honours comes before network_args and keys of dataset.toml, and those before
    what changes nothing or is refused.
    """
    # Letters and digits alone: loraplus_lr_ratio has the word "ratio", LoRA+ the word "lora".
    wanted = re.compile(rf"\b{re.escape(_plain(word))}")
    honoured = [row for row in OPTIONS if isinstance(row.status, Honoured)]
    others = [row for row in OPTIONS if not isinstance(row.status, Honoured)]
    return [
        match
        for match, text in (*_options(honoured), *_network_args(), *_keys(), *_options(others))
        if wanted.search(text)
    ]


def _options(rows: list[Option]) -> Iterator[tuple[Match, str]]:
    for row in rows:
        where = "option"
        if not isinstance(row.status, Honoured):
            where += ", changes nothing" if isinstance(row.status, NoOp) else ", refused"
        # What has no effect is found by what it asks for, not by the reason it is not needed.
        text = _plain(" ".join((*row.spellings, row.help, row.group)))
        yield Match(row.name, where, row.help), text


def _network_args() -> Iterator[tuple[Match, str]]:
    for row in NETWORK_ARGS.values():
        text = _plain(" ".join((*row.spellings, row.help)))
        yield Match(row.name, "network_args", row.help), text


def _keys() -> Iterator[tuple[Match, str]]:
    for key in DATASET_KEYS.values():
        if key.fallback is None:
            text = _plain(f"{key.name} {key.row.help}")
            yield Match(key.name, "dataset.toml", key.row.help), text


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
