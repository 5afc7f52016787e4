"""What is in an adapter file, for the user to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.registry import kind_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentsRow:
    """The modules of one block, or of one place beside the blocks, that are of one kind."""

    place: str
    kind: str
    modules: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    parameters: int
    norm: float
    """Of all their changes together; of DoRA, before it is rescaled to the base."""


@torch.no_grad()
def describe(deltas: Mapping[str, Delta]) -> list[ContentsRow]:
    """Return what an adapter holds, block by block in the order of their numbers."""
    groups: dict[tuple[str, str], list[Delta]] = {}
    for path, delta in deltas.items():
        block = re.match(r"(.*?\bblocks\.\d+)\.", path)
        place = block[1] if block else path
        groups.setdefault((place, kind_in_words(delta)), []).append(delta)
    ordered = sorted(groups.items(), key=lambda item: _by_number(item[0][0]))
    return [_row(place, kind, members) for (place, kind), members in ordered]


def _row(place: str, kind: str, members: list[Delta]) -> ContentsRow:
    return ContentsRow(
        place=place,
        kind=kind,
        modules=len(members),
        ranks=tuple(sorted({delta.rank for delta in members if delta.rank is not None})),
        alphas=tuple(sorted({delta.alpha for delta in members if delta.alpha is not None})),
        parameters=sum(t.numel() for delta in members for t in delta.trained().values()),
        norm=sum(delta.change_norm() ** 2 for delta in members) ** 0.5,
    )


def _by_number(place: str) -> list[tuple[int, str]]:
    """Return a key that sorts blocks.10 behind blocks.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in place.split(".")]
