"""From a template and what it shows to a file.

Templates escape all that they show, as names and captions are anybody's words. A name that does not
exist is an error.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from anima_pipe.files import published
from anima_pipe.plain_text import in_utf8


def write_page(path: Path, template: str, **shown: object) -> None:
    """Write a page piece by piece, so that no more of it than one piece is held in memory.

    Args:
        path: The file, which keeps what it held until the page is whole.
        template: Its name in `templates`.
        shown: What the template shows, by the names that it uses.

    Raises:
        OutputError: The file cannot be written.
    """
    pieces = _environment().get_template(template).generate(**shown)
    with (
        published(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        file.writelines(map(in_utf8, pieces))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("anima_pipe.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    # Jinja's types know nothing but its own filters and globals.
    filters: dict[str, Any] = environment.filters
    filters |= {
        "number": _number,
        "counted": _counted,
        "fixed": _fixed,
        "percent": _percent,
        "sides": _sides,
    }
    variables: dict[str, Any] = environment.globals
    variables["asset"] = _asset
    return environment


def _asset(name: str) -> str:
    return (files(__package__ or "") / "assets" / name).read_text("utf-8")


def _number(number: int) -> str:
    return f"{number:,}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}\N{MULTIPLICATION SIGN}{size[1]}"
