"""What is wrong with a configuration: findings are collected, then reported all together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anima_pipe.errors import ConfigError

MOST_SHOWN: Final = 50
"""Of what is wrong; of the others there is a count, and nobody looks for what they may mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, where it stands, and what to do about it."""

    place: str
    """Such as "train_args.toml line 7" or "command line"."""
    problem: str
    remedy: str
    here_only: bool = False
    """Another machine might serve it: a path that is not there, a package not installed."""

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def raise_findings(findings: Sequence[Finding]) -> None:
    """Raise one ConfigError that lists every finding; return where there are none."""
    if not findings:
        return
    if len(findings) == 1:
        raise ConfigError(str(findings[0]), findings[0].remedy)
    ordered = sorted(findings, key=_in_reading_order)
    some = "" if len(findings) <= MOST_SHOWN else f", the first {MOST_SHOWN}"
    raise ConfigError(
        f"{len(findings)} problems in the configuration{some}:",
        "mend these and run the command again",
        [(str(finding), finding.remedy) for finding in ordered[:MOST_SHOWN]],
    )


def _in_reading_order(finding: Finding) -> list[str | int]:
    """Sort "file line 10" behind "file line 9"."""
    parts = re.split(r"(\d+)", finding.place)
    return [int(part) if part.isdigit() else part for part in parts]
