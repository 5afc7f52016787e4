"""Prompts of previews in Kohya's form: one a line, with settings after two dashes.

1girl, solo --n lowres --w 832 --h 1216 --s 30 --l 4 --d 42
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from anima_pipe.errors import ConfigError
from anima_pipe.records import PreviewPrompt

SIZE_STEP: Final = 16
"""The transformer takes 2x2 patches of latents that are an eighth of the picture."""

FIELDS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "s": ("steps", int),
    "l": ("guidance", float),
    "d": ("seed", int),
    "fs": ("shift", float),
}
"""Kohya's letter of a setting: our field of it, and its type."""


def read_sample_prompts(path: Path) -> list[PreviewPrompt]:
    """Read a file of prompts; empty lines and lines that start with # are passed over.

    Raises:
        ConfigError: The file is missing or empty, or a line has a setting that cannot be honoured.
    """
    if path.suffix.lower() != ".txt":
        raise ConfigError(
            f"{path}: prompts in {path.suffix or 'such'} files are not supported yet",
            "write one prompt a line into a .txt file",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file", "correct sample_prompts, or remove it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8", "save the file as UTF-8") from error
    prompts = [
        parse_prompt(line.strip(), f"{path} line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt", "write one prompt a line")
    return prompts


def parse_prompt(line: str, place: str) -> PreviewPrompt:
    """Read one line.

    Args:
        line: The prompt and its settings.
        place: Where it stands, for messages.

    Raises:
        ConfigError: A setting is unknown, or its value does not fit.
    """
    prompt, *settings = re.split(r"\s+--(?=\w)", " " + line)
    fields: dict[str, Any] = {}
    for setting in settings:
        letter, _, value = setting.partition(" ")
        if letter not in FIELDS:
            known = ", ".join(f"--{name}" for name in FIELDS)
            raise ConfigError(f"{place}: unknown setting --{letter}", f"use one of {known}")
        name, convert = FIELDS[letter]
        try:
            fields[name] = convert(value.strip())
        except ValueError as error:
            raise ConfigError(
                f"{place}: --{letter} takes a number, not {value.strip()!r}", "correct the line"
            ) from error
    _check(fields, place)
    return PreviewPrompt(prompt=prompt.strip(), **fields)


def _check(fields: Mapping[str, Any], place: str) -> None:
    for name in ("width", "height"):
        value = fields.get(name, SIZE_STEP)
        if value < SIZE_STEP or value % SIZE_STEP:
            raise ConfigError(
                f"{place}: {name} {value} is not a multiple of {SIZE_STEP}",
                f"use {max(SIZE_STEP, round(value / SIZE_STEP) * SIZE_STEP)}",
            )
    if fields.get("steps", 1) < 1:
        raise ConfigError(f"{place}: --s {fields['steps']} steps", "use 1 or more; 30 is usual")
