"""docs/options.md, made from the tables: python -m anima_pipe.kohya.docs writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from anima_pipe.files import write_atomically
from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.explain import default_text, values_text
from anima_pipe.kohya.options import OPTIONS
from anima_pipe.kohya.rows import EVERY_COMMAND, Honoured, NoOp, Option, Refused
from anima_pipe.kohya.table.network_args import NETWORK_ARGS
from anima_pipe.kohya.table.other_tools import OTHER_TOOLS

PAGE: Final = Path("docs") / "options.md"
"""In the repository, where the program is run."""

INTRODUCTION: Final = """\
# Options

Every option of kohya-ss/sd-scripts and of the seed system is in one of three classes: honoured,
accepted without effect because it makes no other adapter here, or refused because something else
would be trained than was asked. Nothing else is accepted. `anima-pipe config explain KEY` says the
same of one option.

Options stand on the command line as `--name`, in the file of `--config_file` as `name = value`
under any heading. The command line wins over the file. This page is written by
`python -m anima_pipe.kohya.docs`.
"""


def options_page() -> str:
    """Return the page."""
    return "\n".join(
        [
            INTRODUCTION,
            *_honoured(),
            *_without_effect(),
            *_refused(),
            *_network_args(),
            *_dataset_keys(),
            *_other_tools(),
        ]
    )


def _honoured() -> Iterator[str]:
    rows = [option for option in OPTIONS if isinstance(option.status, Honoured)]
    for title in dict.fromkeys(option.group for option in rows):
        members = [option for option in rows if option.group == title]
        shared = {option.commands for option in members}
        yield f"## {title}\n"
        if len(shared) == 1:
            yield f"{_commands(members[0])}\n"
        table = [_row(option, tell_commands=len(shared) > 1) for option in members]
        yield from _table(("Option", "Takes", "Default", "What it does"), table)


def _row(option: Option, *, tell_commands: bool) -> tuple[str, ...]:
    commands = [_commands(option)] if tell_commands else []
    also = [f"also {_code(alias)}" for alias in option.aliases]
    return (
        _cell([_code(option.name), *also]),
        _takes(option),
        _default(option),
        _cell([option.help, *_remarks(option), *commands]),
    )


def _commands(option: Option) -> str:
    of_all = len(option.commands) == len(EVERY_COMMAND)
    return "Commands: all of them." if of_all else f"Commands: {', '.join(option.commands)}."


def _takes(option: Option) -> str:
    refused = [f"not {_code(value)}" for value in option.refused_values]
    same = [f"{_code(value)}: {_code(choice)}" for value, choice in option.same_as.items()]
    stand_ins = [f"{_code(value)}: as {_code(s.choice)}" for value, s in option.stand_ins.items()]
    return _cell([values_text(option), *same, *stand_ins, *refused])


def _default(option: Option) -> str:
    text = default_text(option)
    return text if text == "not set" else _code(text)


def _remarks(option: Option) -> Iterator[str]:
    if option.default_note:
        yield f"Default: {option.default_note}"
    if option.acts_with:
        other, values = option.acts_with
        choices = " or ".join(_code(str(value)) for value in values)
        yield f"Acts beside {_code(other)} {choices} alone."


def _without_effect() -> Iterator[str]:
    yield "## Accepted without effect\n\nThey are taken with a warning.\n"
    table = [
        (_codes(option.spellings), f"{option.status.why}.")
        for option in OPTIONS
        if isinstance(option.status, NoOp)
    ]
    yield from _table(("Option", "Why"), table)


def _refused() -> Iterator[str]:
    yield (
        "## Refused\n\nThey are errors where they ask for something; written out as switched off "
        "they pass.\n"
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for option in OPTIONS:
        if isinstance(option.status, Refused):
            reason = option.status.why, option.status.instead
            reasons.setdefault(reason, []).extend(option.spellings)
    table = [(_codes(names), why, instead) for (why, instead), names in reasons.items()]
    yield from _table(("Option", "Why", "Instead"), table)


def _network_args() -> Iterator[str]:
    yield '## Keys of network_args\n\nEach is written as `"key=value"` into that list.\n'
    table = [
        (
            _codes(argument.spellings),
            _codes(argument.networks),
            argument.default or "not set",
            argument.help,
        )
        for argument in NETWORK_ARGS.values()
    ]
    yield from _table(("Key", "Networks", "Default", "What it does"), table)


def _dataset_keys() -> Iterator[str]:
    yield (
        "## Keys of dataset.toml\n\nA key is looked for in the subset, then its dataset, then "
        "`[general]`, then among the options of the same name.\n"
    )
    table: list[tuple[str, ...]] = []
    for key in DATASET_KEYS.values():
        status = key.row.status
        reason = [] if isinstance(status, Honoured) else [f"Without effect: {status.why}."]
        if isinstance(status, Refused):
            reason = [f"Refused: {status.why}."]
        levels = ", ".join(map(_code, key.levels))
        says = _cell([key.row.help, *reason])
        table.append((_code(key.name), levels, _takes(key.row), _default(key.row), says))
    yield from _table(("Key", "Stands in", "Takes", "Default", "What it does"), table)


def _other_tools() -> Iterator[str]:
    yield (
        "## Options of other trainers\n\nThey are refused by name. In a file, those that make no "
        "other adapter are warned of.\n"
    )
    table = [
        (_code(key), other.tool, "warned of" if other.harmless else "refused", other.instead)
        for key, other in OTHER_TOOLS.items()
    ]
    yield from _table(("Option", "Whose", "In a file", "Instead"), table)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (heading, ["---"] * len(heading), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _codes(names: Iterable[str]) -> str:
    return _cell(map(_code, names))


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(lines: Iterable[str]) -> str:
    return "<br>".join(line.replace("|", "\\|") for line in lines)


if __name__ == "__main__":
    write_atomically(PAGE, options_page().encode())
