"""The options of a command as the file that sets them: what --output_config writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from anima_pipe.kohya.options import find_option, options_of
from anima_pipe.kohya.resolved import Resolved, Written
from anima_pipe.kohya.rows import Kind, Refused
from anima_pipe.kohya.toml_text import toml_lines

NOT_OF_A_FILE: Final = ("config_file", "output_config", "summary_json", "debug")
"""Options of one call of a command."""


def config_text(options: Resolved) -> str:
    """Return a TOML text that sets what was set, and names the defaults as comments.

    Every option keeps the spelling that it was set by: some seed's spellings mean a little more
    than Kohya's.
    """
    groups: dict[str, list[str]] = {}
    for item in options.written.values():
        if item.option.name not in NOT_OF_A_FILE:
            groups.setdefault(item.option.group, []).extend(_set_lines(item))
    for name, default in options.defaults.items():
        option = find_option(name)
        if option and name not in (*NOT_OF_A_FILE, *options.written):
            groups.setdefault(option.group, []).append(_default_line(name, default))
    heading = f"# The options of anima-pipe {options.command}. What is behind # holds by default."
    order = dict.fromkeys(option.group for option in options_of(options.command))
    blocks = ["\n".join([f"## {title}", *groups[title]]) for title in order if groups.get(title)]
    return "\n\n".join([heading, *blocks]) + "\n"


def _default_line(name: str, default: object) -> str:
    if default in (None, "", ()):
        return f"# {name} is not set"
    return f"# {next(toml_lines({name: default}))}"


def _set_lines(item: Written) -> Iterator[str]:
    if item.value is None or isinstance(item.option.status, Refused):
        return
    value = item.value
    if item.option.kind in (Kind.PAIRS, Kind.TEXTS):
        # As it was written: only texts may stand in such a list.
        several = isinstance(item.given, list | tuple)
        value = [*cast("list[object]", item.given)] if several else [item.given]
    yield from toml_lines({item.spelling: value})
