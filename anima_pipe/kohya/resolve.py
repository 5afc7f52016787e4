"""From what the user wrote, on the command line and in a file, to the values of one command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from anima_pipe.kohya.findings import MOST_SHOWN, Finding, raise_findings
from anima_pipe.kohya.options import find_option, nearest_name, options_of
from anima_pipe.kohya.resolved import Resolved, Written
from anima_pipe.kohya.rows import Honoured, NoOp, Option, Refused
from anima_pipe.kohya.rules import rule_findings, rule_warnings
from anima_pipe.kohya.table.other_tools import OTHER_TOOLS
from anima_pipe.kohya.train_toml import read_train_args, train_args_path
from anima_pipe.kohya.values import UnfitValueError, is_blank, is_harmless, read_value
from anima_pipe.secrecy import SECRET_OPTIONS, keep_secret, keep_secrets_of

COMMAND_LINE: Final = "command line"


class _Entry(NamedTuple):
    spelling: str
    given: object
    place: str


def resolve(command: str, cli: Mapping[str, object], config_file: Path | None = None) -> Resolved:
    """Return the options of a command.

    Args:
        command: The command's name, as in `anima-pipe NAME`.
        cli: What the command line sets, by any spelling; None means that it does not.
        config_file: TOML file of further options, those of other commands included.

    Raises:
        ConfigError: It lists everything that is wrong, each with its place and remedy.
    """
    resolved, findings = examine(command, cli, config_file)
    raise_findings(findings)
    return resolved


def examine(
    command: str, cli: Mapping[str, object], config_file: Path | None = None
) -> tuple[Resolved, list[Finding]]:
    """Return what can be made out of a command's options, and all that is wrong with them.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or is another kind of file.
    """
    findings: list[Finding] = []
    written = _read_file(config_file, findings) if config_file is not None else {}
    written |= _read_command_line(cli, command, findings)
    own = {name: item for name, item in written.items() if command in item.option.commands}
    findings += [finding for item in own.values() for finding in _refusal(item)]
    honoured = [row for row in options_of(command) if isinstance(row.status, Honoured)]
    resolved = Resolved(
        command=command,
        written=own,
        defaults={option.name: option.default for option in honoured},
    )
    findings += rule_findings(resolved)
    warnings = (
        *_of_other_tools(config_file),
        *_effectless(own),
        *_replaced(own),
        *_ambiguous(own, config_file),
        *rule_warnings(resolved),
    )
    return replace(resolved, warnings=warnings), findings


def _read_file(path: Path, findings: list[Finding]) -> dict[str, Written]:
    file = train_args_path(path)
    entries = [
        _Entry(arg.key, arg.value, f"{file.name} line {arg.line}") for arg in read_train_args(path)
    ]
    written = _understand(entries, findings, typed=True)
    return {name: _found_beside(item, file.parent) for name, item in written.items()}


def _found_beside(item: Written, folder: Path) -> Written:
    """Take a relative path from the file's folder where it does not exist from here."""
    if item.option.beside_file and isinstance(item.value, Path) and not item.value.exists():
        beside = folder / item.value
        return replace(item, value=beside) if beside.exists() else item
    return item


def _read_command_line(
    cli: Mapping[str, object], command: str, findings: list[Finding]
) -> dict[str, Written]:
    entries = [_Entry(key, given, COMMAND_LINE) for key, given in cli.items() if given is not None]
    written = _understand(entries, findings, typed=False)
    findings += [
        Finding(
            place=COMMAND_LINE,
            problem=f"{command} does not take --{item.spelling}",
            remedy=f"remove it; it belongs to {', '.join(item.option.commands)}",
        )
        for item in written.values()
        if command not in item.option.commands
    ]
    return written


def _understand(
    entries: Iterable[_Entry], findings: list[Finding], *, typed: bool
) -> dict[str, Written]:
    """Return what one source sets, by the options' names; what is wrong goes to the findings."""
    written: dict[str, Written] = {}
    for entry in entries:
        option = find_option(entry.spelling)
        if option is None:
            # On the command line the user types it; a file may have been written by that tool.
            if not (typed and _is_harmless_elsewhere(entry.spelling)):
                findings.append(_unknown(entry, guesses=len(findings) < MOST_SHOWN))
            continue
        try:
            value = _value(option, entry.given, typed=typed)
        except UnfitValueError as error:
            problem = f"{entry.spelling}: {error.problem}"
            findings.append(Finding(place=entry.place, problem=problem, remedy=error.remedy))
            continue
        _keep_secrets(option, entry.given)
        item = Written(option=option, value=value, **entry._asdict())
        earlier = written.setdefault(option.name, item)
        if earlier.value != value and not isinstance(option.status, NoOp):
            findings.append(_contradiction(earlier, item))
    return written


def _keep_secrets(option: Option, given: object) -> None:
    if option.name in SECRET_OPTIONS:
        keep_secret(str(given))
    elif isinstance(given, str):
        keep_secrets_of(given)


def _value(option: Option, given: object, *, typed: bool) -> object:
    if is_blank(given):
        return option.default
    # What is refused anyway needs no second complaint about its type.
    if isinstance(option.status, Refused):
        return given
    try:
        value = read_value(option, given, typed=typed)
    except UnfitValueError:
        # Whatever stands there, an option that changes nothing is no reason to stop.
        if isinstance(option.status, NoOp):
            return given
        raise
    return None if option.zero_is_none and value == 0 else value


def _is_harmless_elsewhere(key: str) -> bool:
    """Tell whether a key is another program's and cannot change the trained adapter."""
    other = OTHER_TOOLS.get(key)
    return other is not None and other.harmless


def _of_other_tools(config_file: Path | None) -> Iterator[str]:
    """Yield a sentence for each key of a file that another program reads and that may stand."""
    if config_file is None:
        return
    for arg in read_train_args(config_file):
        if find_option(arg.key) is None and _is_harmless_elsewhere(arg.key):
            other = OTHER_TOOLS[arg.key]
            yield (
                f"{arg.key} ({train_args_path(config_file).name} line {arg.line}) changes nothing: "
                f"it is an option of {other.tool}; {other.instead}"
            )


def _unknown(entry: _Entry, *, guesses: bool) -> Finding:
    if other := OTHER_TOOLS.get(entry.spelling):
        problem = f"{entry.spelling} is an option of {other.tool}, not of Kohya's scripts"
        return Finding(place=entry.place, problem=problem, remedy=other.instead)
    near = nearest_name(entry.spelling) if guesses else None
    return Finding(
        place=entry.place,
        problem=f"there is no option {entry.spelling}",
        remedy=f"did you mean {near}?" if near else "remove it; --help lists the options",
    )


def _contradiction(earlier: Written, later: Written) -> Finding:
    return Finding(
        place=later.place,
        problem=f"{later.spelling} = {later.given} contradicts {earlier} = {earlier.given}",
        remedy="keep one of the two",
    )


def _refusal(item: Written) -> Iterator[Finding]:
    status = item.option.status
    if isinstance(status, Refused) and not _asks_nothing(item):
        problem = f"{item.spelling} is refused: {status.why}"
        yield Finding(place=item.place, problem=problem, remedy=status.instead)


def _ambiguous(own: Mapping[str, Written], config_file: Path | None) -> Iterator[str]:
    """Yield a sentence for each relative path of the file that leads to two files."""
    for item in own.values():
        if config_file is None or not item.option.beside_file or item.place == COMMAND_LINE:
            continue
        beside = train_args_path(config_file).parent / str(item.given)
        if item.value == Path(str(item.given)) and beside.exists() and not _same(beside, item):
            yield (
                f"{item} is {item.value} of the current folder, not {beside}: name that one in "
                f"full, or by --{item.option.name}, if it is meant"
            )


def _same(path: Path, item: Written) -> bool:
    assert isinstance(item.value, Path)
    return item.value.exists() and path.samefile(item.value)


def _asks_nothing(item: Written) -> bool:
    return is_harmless(item.option, item.value)


def _effectless(own: Mapping[str, Written]) -> Iterator[str]:
    """Yield a sentence for each option that is accepted although it does nothing."""
    for item in own.values():
        status = item.option.status
        if isinstance(status, NoOp) and not _asks_nothing(item):
            yield f"{item} changes nothing: {status.why}"


def _replaced(own: Mapping[str, Written]) -> Iterator[str]:
    """Yield a sentence for each value in whose place another one is taken."""
    for item in own.values():
        stand_in = item.option.stand_ins.get(str(item.given))
        if stand_in is not None:
            yield f"{item} = {item.given} is taken as {stand_in.choice}: {stand_in.why}"
