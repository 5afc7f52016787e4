"""What one key means: everything the tables know of it, in plain lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.dataset_keys import DATASET_KEYS, DatasetKey
from anima_pipe.kohya.network_args import IDLE
from anima_pipe.kohya.options import OPTIONS, find_option, nearest_name
from anima_pipe.kohya.rows import Honoured, Kind, NoOp, Option, Refused
from anima_pipe.kohya.search import Match, search
from anima_pipe.kohya.table.network_args import (
    KIND_OF_NETWORK,
    LYCORIS,
    NETWORK_ARG_BY_SPELLING,
    NETWORK_ARGS,
    NetworkArg,
)
from anima_pipe.kohya.table.other_tools import OTHER_TOOLS
from anima_pipe.kohya.toml_text import toml_value

SHORTEST_WORD: Final = 3
"""Letters of a word that is looked for."""


def explain(key: str) -> list[str]:
    """Return what is to be said of an option or a key of dataset.toml, a line each.

    Args:
        key: By any spelling, with or without dashes before it; or a word that options concern.

    Raises:
        ConfigError: Nothing is called so, and the word is nowhere in what options do.
    """
    name = key.lstrip("-").replace("-", "_")
    if (option := find_option(name) or find_option(name.removeprefix("no_"))) is not None:
        keys = _network_arg_list() if option.name == "network_args" else ()
        return [*_option_lines(option), *_dataset_lines(option), *keys]
    if (in_dataset := DATASET_KEYS.get(name)) is not None:
        return [*_own_lines(in_dataset), f"dataset.toml  in {_levels(in_dataset)}"]
    if (argument := NETWORK_ARG_BY_SPELLING.get(name)) is not None:
        also = [match for match in search(name) if match.name != argument.name]
        return [*_network_arg_lines(argument), *_match_lines(name, also)]
    if why := IDLE.get(name):
        return [f"{name}: a key of network_args", f"here       changes nothing: {why}"]
    if other := OTHER_TOOLS.get(name):
        whose = f"{name}: an option of {other.tool}, not of Kohya's scripts"
        return [whose, f"here       {other.instead}"]
    if len(name) >= SHORTEST_WORD and (matches := search(name)):
        return [*_match_lines(name, matches)]
    near = nearest_name(name, [*DATASET_KEYS, *(s for row in OPTIONS for s in row.spellings)])
    raise ConfigError(
        f"there is no option {key}",
        f"did you mean {near}?" if near else "docs/options.md lists them all",
    )


def _match_lines(word: str, matches: Sequence[Match]) -> Iterator[str]:
    """Yield what a word concerns, a line each."""
    if matches:
        yield f"concerning {word}:"
    for match in matches:
        yield f"  {match.name} ({match.kind}): {match.help}"


def _network_arg_lines(argument: NetworkArg) -> Iterator[str]:
    yield f"{argument.name}: {argument.help}"
    yield f"spellings  {', '.join(f'{spelling}=...' for spelling in argument.spellings)}"
    yield f"default    {argument.default or 'not set'}"
    yield f'write      network_args = ["{argument.name}=..."]'
    yield f"networks   {', '.join(argument.networks)}"


def _network_arg_list() -> Iterator[str]:
    """Yield the keys of network_args, those of all networks first."""
    every = (*KIND_OF_NETWORK, LYCORIS)
    by_networks: dict[tuple[str, ...], list[NetworkArg]] = {every: []}
    for argument in NETWORK_ARGS.values():
        by_networks.setdefault(argument.networks, []).append(argument)
    for networks, arguments in by_networks.items():
        yield "every network:" if networks == every else f"{', '.join(networks)}:"
        for argument in arguments:
            default = f"; default {argument.default}" if argument.default else ""
            yield f"  {', '.join(argument.spellings)}: {argument.help[:-1]}{default}."


def fate(option: Option) -> str:
    """Return what becomes of an option, in one sentence."""
    match option.status:
        case Honoured():
            return "honoured"
        case NoOp(why):
            return f"accepted, but changes nothing here: {why}"
        case Refused(why, instead):
            return f"refused: {why}; {instead}"


def default_text(option: Option) -> str:
    """Return an option's default as a file would write it."""
    return "not set" if option.default in (None, "", ()) else toml_value(option.default)


def values_text(option: Option) -> str:
    """Return what an option takes: its kind, and its choices or its range."""
    low, high = option.minimum, option.maximum
    if option.choices:
        return f"one of {', '.join(option.choices)}"
    if low is not None and high is not None:
        return f"{option.kind.value}, {low:g} to {high:g}"
    if low is not None:
        return f"{option.kind.value}, at least {low:g}"
    return option.kind.value


def _option_lines(option: Option) -> Iterator[str]:
    flags = [f"--{spelling}" for spelling in option.spellings]
    if option.kind is Kind.FLAG:
        flags.insert(1, f"--no-{option.name}")
    yield f"{option.name}: {option.help}"
    yield f"spellings  {', '.join(flags)}"
    yield f"here       {fate(option)}"
    yield from _value_lines(option)
    yield f"commands   {', '.join(option.commands)}"


def _value_lines(option: Option) -> Iterator[str]:
    yield f"takes      {values_text(option)}"
    for spelling, choice in option.same_as.items():
        yield f"           {spelling} means {choice}"
    for value, stand_in in option.stand_ins.items():
        yield f"           {value} is taken as {stand_in.choice}: {stand_in.why}"
    for value, reason in option.refused_values.items():
        yield f"           {value} is refused: {reason.why}; {reason.instead}"
    note = f" ({option.default_note})" if option.default_note else ""
    yield f"default    {default_text(option)}{note}"
    if option.acts_with:
        other, values = option.acts_with
        yield f"acts with  {other} = {' or '.join(map(str, values))}"


def _dataset_lines(option: Option) -> Iterator[str]:
    for key in DATASET_KEYS.values():
        if key.fallback == option.name:
            yield f"dataset.toml  {key.name}, in {_levels(key)}; it wins over this option"


def _own_lines(key: DatasetKey) -> Iterator[str]:
    yield f"{key.name}: {key.row.help}"
    yield f"here       {fate(key.row)}"
    yield from _value_lines(key.row)


def _levels(key: DatasetKey) -> str:
    return " or ".join(key.levels)
