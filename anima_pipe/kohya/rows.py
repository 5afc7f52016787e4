"""One option of Kohya's dialect as a row of a table, and the short forms to write rows with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, TypedDict, Unpack

FETCH: Final = "fetch-tokenizer"
LATENTS: Final = "cache-latents"
TEXT: Final = "encode-text"
TRAIN: Final = "train"
EXPORT: Final = "export-comfy"
ALL: Final = "all"

EVERY_COMMAND: Final = (FETCH, LATENTS, TEXT, TRAIN, EXPORT, ALL)
CACHING: Final = (LATENTS, TEXT, TRAIN, ALL)
TRAINING: Final = (TRAIN, ALL)


class Kind(Enum):
    """What a value is; the text is what messages and the help call it."""

    TEXT = "text"
    PATH = "path"
    PLACE = "folder, or an address"
    """A Path, or the text of an address such as s3://bucket/cache."""
    FLAG = "true or false"
    INTEGER = "whole number"
    NUMBER = "number"
    COUNT_OR_SHARE = "whole number, or a share: 0.1 or 10%"
    """A whole number counts; a number below 1, or a percentage, is a share of the whole."""
    SIZE = "size: N, or width,height"
    RANGE = "range: low,high"
    TEXTS = "list"
    PAIRS = "list of key=value"
    TABLE = "table"
    """In files only; the command line has no form for it."""


@dataclass(frozen=True, slots=True)
class Honoured:
    """The option does what it says."""


@dataclass(frozen=True, slots=True)
class NoOp:
    """The option is accepted with a warning: it makes no other adapter here."""

    why: str
    """Completes "X changes nothing: ..."."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The option is an error when it asks for something: another adapter would come of it."""

    why: str
    """Completes "X is refused: ..."."""
    instead: str
    """What to use, or to do, instead."""


Status = Honoured | NoOp | Refused


@dataclass(frozen=True, slots=True)
class StandIn:
    """What serves instead of a value that Kohya takes, which makes no other adapter."""

    choice: str
    why: str
    """Completes "X = VALUE is taken as CHOICE: ..."."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: how it is spelt, what it takes, and what becomes of it."""

    name: str
    """Kohya's spelling, with underscores."""
    kind: Kind
    help: str
    """One sentence in our own words, with unit and sensible range."""
    default: object = None
    """None: not set."""
    default_note: str = ""
    """Why the default is not Kohya's, or which of two it is where Kohya and the seed differ."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the name."""
    choices: tuple[str, ...] = ()
    same_as: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other spellings of choices, and the choice each one means."""
    refused_values: Mapping[str, Refused] = field(default_factory=dict[str, Refused])
    """Values that Kohya takes and we do not."""
    words_of_unknown: str = ""
    """How the problem is put for a value that is none of the choices, with {} for the value."""
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict[str, StandIn])
    """Values that are taken with a warning, because what they change is not the trained adapter."""
    minimum: float | None = None
    maximum: float | None = None
    acts_with: tuple[str, tuple[object, ...]] | None = None
    """(option, values): elsewhere this option has no effect, and giving it is warned of."""
    zero_is_none: bool = False
    """0 is another way to say that there is none: the value is None then, and not a number."""
    asks_nothing: tuple[object, ...] = ()
    """Beside the default, values that switch nothing on, where the option is refused: always, or
    beside others."""
    status: Status = field(default_factory=Honoured)
    group: str = ""
    """Heading in the help."""
    commands: tuple[str, ...] = ()
    """Commands that take it."""
    when_missing: str = ""
    """What to say where a command cannot do without it."""
    fetched_by: str = ""
    """The command after which every other one finds it, named or not."""
    or_else: tuple[str, ...] = ()
    """Options of which any serves as well where this one is required."""
    beside_file: bool = False
    """A relative path that is not there may be meant from the folder of the file that names it."""
    test: str = ""
    """Which test shows that an honoured option has its effect: `test_file.py::test_function`."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


class RowFields(TypedDict, total=False):
    """The fields of Option that the short forms below pass on."""

    default: object
    default_note: str
    aliases: tuple[str, ...]
    choices: tuple[str, ...]
    same_as: Mapping[str, str]
    refused_values: Mapping[str, Refused]
    words_of_unknown: str
    stand_ins: Mapping[str, StandIn]
    minimum: float | None
    maximum: float | None
    acts_with: tuple[str, tuple[object, ...]] | None
    zero_is_none: bool
    asks_nothing: tuple[object, ...]
    status: Status
    commands: tuple[str, ...]
    when_missing: str
    fetched_by: str
    or_else: tuple[str, ...]
    beside_file: bool
    test: str


def text(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a text."""
    return Option(name=name, kind=Kind.TEXT, help=help_text, **fields)


def path(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a file or a folder."""
    return Option(name=name, kind=Kind.PATH, help=help_text, **fields)


def place(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a folder, or an address that stands for one."""
    return Option(name=name, kind=Kind.PLACE, help=help_text, **fields)


def flag(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row that is on or off, off unless its default says otherwise."""
    fields.setdefault("default", False)
    return Option(name=name, kind=Kind.FLAG, help=help_text, **fields)


def integer(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a whole number."""
    return Option(name=name, kind=Kind.INTEGER, help=help_text, **fields)


def number(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a number."""
    return Option(name=name, kind=Kind.NUMBER, help=help_text, **fields)


def count_or_share(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a whole number, or a share of the whole below 1."""
    return Option(name=name, kind=Kind.COUNT_OR_SHARE, help=help_text, **fields)


def size(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is a (width, height) in pixels."""
    return Option(name=name, kind=Kind.SIZE, help=help_text, **fields)


def number_range(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row whose value is (low, high), numbers above 0."""
    return Option(name=name, kind=Kind.RANGE, help=help_text, **fields)


def texts(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row that takes several texts after one flag."""
    return Option(name=name, kind=Kind.TEXTS, help=help_text, **fields)


def pairs(name: str, help_text: str, **fields: Unpack[RowFields]) -> Option:
    """Return a row that takes several key=value after one flag."""
    return Option(name=name, kind=Kind.PAIRS, help=help_text, **fields)


def no_op(why: str, *rows: Option) -> tuple[Option, ...]:
    """Return the rows as accepted without effect, all for the same reason."""
    return tuple(replace(row, status=NoOp(why)) for row in rows)


def refused(why: str, instead: str, *rows: Option) -> tuple[Option, ...]:
    """Return the rows as refused, all for the same reason."""
    return tuple(replace(row, status=Refused(why, instead)) for row in rows)


def group(title: str, commands: tuple[str, ...], *rows: Option) -> tuple[Option, ...]:
    """Return the rows under one heading; `commands` holds where a row names none itself."""
    return tuple(replace(row, group=title, commands=row.commands or commands) for row in rows)
