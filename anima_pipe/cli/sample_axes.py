"""What `anima-pipe sample` draws: pictures of a grid, each a prompt and adapters at strengths."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.sample_prompts import with_settings
from anima_pipe.records import PreviewPrompt
from anima_pipe.runtime import finite_number

LETTERS: Final = {
    "negative": "n",
    "width": "w",
    "height": "h",
    "steps": "s",
    "cfg": "l",
    "seed": "d",
    "shift": "fs",
}
"""Settings of a picture as options, and Kohya's letters of them."""
NUMBERS: Final = ("steps", "cfg", "seed", "shift")
"""Those that can be an axis."""
AXES: Final = ("adapter", "strength", *NUMBERS)
NO_ADAPTER: Final = "none"

Adapters = tuple[tuple[Path, float], ...]
"""Adapter files and their strengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture to be drawn."""

    prompt: PreviewPrompt
    adapters: Adapters = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What varies along the rows or the columns of a sheet."""

    name: str
    values: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """What stands at the rows or columns; files without their folders."""
        if self.name == "adapter":
            return [value if value == NO_ADAPTER else Path(value).stem for value in self.values]
        return [f"{self.name} {value}" for value in self.values]


def parse_axis(text: str) -> Axis:
    """Read `strength=0,0.5,1` or `adapter=out/fox-*.safetensors`.

    Raises:
        ConfigError: It is no axis, or names files that are not there.
    """
    name, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if name not in AXES or not values:
        raise ConfigError(
            f"--xy {text} is no axis", f"write NAME=VALUE,VALUE..., NAME one of {', '.join(AXES)}"
        )
    if name == "adapter":
        values = [path for value in values for path in _matching(value)]
    return Axis(name=name, values=tuple(values))


def _matching(pattern: str) -> list[str]:
    """Return the files that a name with * stands for, in order; else the name."""
    if "*" not in pattern:
        return [pattern]
    # Names of files may hold ? and [ ].
    pattern_of_star = glob.escape(pattern).replace("[*]", "*")
    found = sorted(glob.glob(pattern_of_star))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise ConfigError(f"--xy adapter: no file matches {pattern}", "correct the pattern")
    return found


def grid(shot: Shot, x: Axis, y: Axis) -> list[list[Shot]]:
    """Return the pictures of a sheet by row and column.

    A strength is that of the adapter axis where there is one, and of every adapter else.

    Raises:
        ConfigError: Both axes are of one kind, a value does not fit, or there is no adapter whose
            strength could vary.
    """
    if x.name == y.name:
        raise ConfigError(f"--xy has {x.name} on both axes", "vary something else on one of them")
    if "strength" in (x.name, y.name) and "adapter" not in (x.name, y.name) and not shot.adapters:
        raise ConfigError(
            "--xy varies the strength of no adapter", "give --adapter FILE, or an axis adapter=..."
        )
    rows: list[list[Shot]] = []
    for down in y.values:
        rows.append([])
        for across in x.values:
            chosen = {x.name: across, y.name: down}
            rows[-1].append(_varied(shot, chosen))
    return rows


def _varied(shot: Shot, chosen: dict[str, str]) -> Shot:
    letters = {LETTERS[name]: chosen[name] for name in NUMBERS if name in chosen}
    prompt = with_settings(shot.prompt, letters, "--xy")
    strength = _number(chosen["strength"]) if "strength" in chosen else None
    adapters = shot.adapters
    if "adapter" in chosen:
        if chosen["adapter"] != NO_ADAPTER:
            added = Path(chosen["adapter"]), 1.0 if strength is None else strength
            adapters = (*adapters, added)
    elif strength is not None:
        adapters = tuple((path, strength) for path, _ in adapters)
    return replace(shot, prompt=prompt, adapters=adapters)


def _number(text: str) -> float:
    try:
        return finite_number(text)
    except ValueError as error:
        raise ConfigError(f"--xy strength: {text!r} is no number", "give numbers") from error


def by_files(shots: Sequence[Shot]) -> Iterator[tuple[tuple[Path, ...], list[Shot]]]:
    """Yield distinct pictures by the files that they need, so that each file is loaded once."""
    groups: dict[tuple[Path, ...], dict[Shot, None]] = {}
    for shot in shots:
        groups.setdefault(tuple(path for path, _ in shot.adapters), {})[shot] = None
    for paths, group in groups.items():
        yield paths, list(group)
