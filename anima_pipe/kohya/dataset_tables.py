"""The tables of dataset.toml, key by key: what each of them sets, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from anima_pipe.kohya.config_file import ConfigFile, KeyPath
from anima_pipe.kohya.dataset_keys import DATASET_KEYS, DATASETS, RENAMED
from anima_pipe.kohya.findings import MOST_SHOWN, Finding
from anima_pipe.kohya.options import find_option, nearest_name
from anima_pipe.kohya.rows import NoOp, Refused
from anima_pipe.kohya.table.other_tools import OTHER_TOOLS
from anima_pipe.kohya.values import UnfitValueError, is_harmless, read_value

Table = Mapping[str, Any]
Levels = Sequence[Mapping[str, object]]
"""What is set, from the innermost table to the outermost, then the options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A file being read, and what was found wrong so far."""

    file: ConfigFile
    options: Mapping[str, object]
    """What the command line and train_args.toml set, by the names of dataset keys."""
    findings: list[Finding] = field(default_factory=list[Finding])
    warnings: list[str] = field(default_factory=list[str])
    taken: set[str] = field(default_factory=set[str])
    """Keys for which some subset has the value of the options."""
    overruled: set[str] = field(default_factory=set[str])
    """Keys for which some subset has another value than the options'."""

    def object_to(
        self, path: KeyPath, problem: str, remedy: str, *, here_only: bool = False
    ) -> None:
        """Add a finding about a key or a table."""
        problem = f"{written(path)}: {problem}" if path else problem
        place = self.file.place(path)
        found = Finding(place=place, problem=problem, remedy=remedy, here_only=here_only)
        self.findings.append(found)


def read_tables(reading: Reading, path: KeyPath, found: object) -> list[Table]:
    """Return an array of tables; the lack of one goes to the findings."""
    name = f"[[{'.'.join(part for part in path if isinstance(part, str))}]]"
    if not isinstance(found, list) or not found:
        reading.object_to(path[:-1], f"there is no {name}", f"add {name} with its keys")
        return []
    tables = cast("list[object]", found)
    if not all(isinstance(table, dict) for table in tables):
        reading.object_to(path, "is not a list of tables", f"write {name} over each")
        return []
    return cast("list[Table]", tables)


def read_level(reading: Reading, path: KeyPath, table: object, level: str) -> dict[str, object]:
    """Return the values that one table sets; what is wrong goes to the findings."""
    if not isinstance(table, dict):
        reading.object_to(path, "is not a table", f"write {level} above its keys")
        return {}
    values: dict[str, object] = {}
    for key, given in cast("dict[str, object]", table).items():
        if key == "subsets" and level == DATASETS:
            continue
        row = DATASET_KEYS.get(key)
        if row is None:
            object_to_unknown(reading, (*path, key))
        elif level not in row.levels:
            remedy = f"move it to {' or '.join(row.levels)}"
            reading.object_to((*path, key), f"cannot stand in {level}", remedy)
        else:
            values |= _read(reading, (*path, key), given)
    return values


def _read(reading: Reading, path: KeyPath, given: object) -> dict[str, object]:
    """Return the value under the key's name, or nothing where it is not for us to use."""
    name = str(path[-1])
    key = DATASET_KEYS[name]
    row = key.row
    if isinstance(row.status, Refused):
        if not is_harmless(row, given):
            reading.object_to(path, f"is refused: {row.status.why}", row.status.instead)
        return {}
    try:
        value = read_value(row, given, typed=True)
        value = key.reader(value) if key.reader else value
    except UnfitValueError as error:
        reading.object_to(path, error.problem, error.remedy)
        return {}
    if isinstance(row.status, NoOp) and not is_harmless(row, given):
        where = f"{written(path)} ({reading.file.place(path)})"
        reading.warnings.append(f"{where} changes nothing: {row.status.why}")
    return {name: value}


def object_to_unknown(reading: Reading, path: KeyPath, *, top: bool = False) -> None:
    """Add the finding that there is no key of that name, with the best guess at what was meant."""
    key = str(path[-1])
    guesses = len(reading.findings) < MOST_SHOWN
    if top and key not in DATASET_KEYS:
        near = nearest_name(key, ("general", "datasets")) if guesses else None
        hint = f"did you mean {near}?" if near else "only [general] and [[datasets]] stand here"
    else:
        near = nearest_name(key, DATASET_KEYS) if guesses else None
        hint = f"did you mean {near}?" if near else "remove it"
    problem = "there is no such key"
    if other := OTHER_TOOLS.get(key):
        problem, hint = f"is a key of {other.tool}", other.instead
    elif key in RENAMED:
        hint = f"dataset.toml calls it {RENAMED[key]}"
    elif top and key in DATASET_KEYS:
        hint = f"move it to {' or '.join(DATASET_KEYS[key].levels)}"
    elif find_option(key):
        hint = "it is an option of the training: write it into the file of --config_file"
    reading.object_to(path, problem, hint)


def note_use_of_options(reading: Reading, levels: Levels) -> None:
    """Note for one subset which options have their say, and which its tables overrule.

    Args:
        reading: It takes the notes.
        levels: Of the subset, the options last.
    """
    *tables, options = levels
    for name, value in options.items():
        own = next((table[name] for table in tables if table.get(name) is not None), value)
        (reading.taken if own == value else reading.overruled).add(name)


def first_value(name: str, levels: Levels) -> Any:
    """Return the first value that a level has, else the default."""
    for level in levels:
        if level.get(name) is not None:
            return level[name]
    return DATASET_KEYS[name].row.default


def named(path: KeyPath, levels: Levels) -> str:
    """Return what a user calls a value: its place where a table sets it, else the option's name.

    Args:
        path: Of the key in the innermost table.
        levels: From that table out, the options last.
    """
    *tables, _options = levels
    key = str(path[-1])
    return written(path) if any(table.get(key) is not None for table in tables) else key


def written(path: KeyPath) -> str:
    """Return a path as people write it: datasets[0].subsets[1].num_repeats."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")
