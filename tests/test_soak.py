"""What a long run is judged by."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from commands import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from soak import LIMITS, Look, compared

STEPS = 100


def looks(
    mib: Callable[[int], float] = lambda _: 500.0,
    files: Callable[[int], int] = lambda _: 30,
    work: Callable[[int], float] = lambda step: 0.5 * step,
) -> list[Look]:
    """What is seen of a run in which something grows with its steps."""
    return [
        Look(
            step=step,
            resident_mib=mib(step),
            open_files=files(step),
            threads=9,
            cpu_seconds=work(step),
        )
        for step in range(1, STEPS + 1)
    ]


def grown(seen: list[Look]) -> list[str]:
    return [name for name, (first, last) in compared(seen).items() if last > first * LIMITS[name]]


def test_a_run_in_which_nothing_grows_is_flat_though_its_first_part_filled_buffers():
    assert grown(looks(mib=lambda step: min(500, 300 + 20 * step))) == []


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        (looks(mib=lambda step: 500 + step), "resident_mib"),
        (looks(files=lambda step: 30 + step // 20), "open_files"),
        (looks(work=lambda step: 0.5 * step + 0.002 * step**2), "cpu_seconds_per_step"),
    ],
)
def test_what_grows_with_the_steps_is_named(seen: list[Look], named: str):
    assert grown(seen) == [named]


def test_a_run_that_is_too_short_to_tell_is_an_error():
    with pytest.raises(SystemExit, match="train for more"):
        compared(looks()[:4])
