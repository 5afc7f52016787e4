"""Prompts of previews in Kohya's three forms, told apart by the file's extension.

.txt     one a line, settings after two dashes: 1girl, solo --n lowres --w 832 --h 1216 --d 42
.toml    [prompt] holds what all share, each [[prompt.subset]] one picture
.json    a list; each element is such a line, or an object with the keys of the TOML form
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.config_file import parsed_json, read_text, read_toml
from anima_pipe.kohya.findings import Finding, raise_findings
from anima_pipe.kohya.values import UnfitValueError
from anima_pipe.records import PreviewPrompt
from anima_pipe.source.prompts import half_character

SIZE_STEP: Final = 16
"""The transformer takes 2x2 patches of latents that are an eighth of the picture."""
MOST_STEPS: Final = 1000
"""Kohya's limit, and the number of levels in the table that steps are picked from."""

PROMPT_SUFFIXES: Final = (".txt", ".toml", ".json")


class Setting(NamedTuple):
    """One setting of a prompt: Kohya's letter on a line, Kohya's key in a table."""

    letter: str
    key: str
    field: str
    """Of PreviewPrompt."""
    kind: type[int | float | str]


SETTINGS: Final = (
    Setting("n", "negative_prompt", "negative", str),
    Setting("w", "width", "width", int),
    Setting("h", "height", "height", int),
    Setting("s", "sample_steps", "steps", int),
    Setting("l", "scale", "guidance", float),
    Setting("d", "seed", "seed", int),
    Setting("fs", "flow_shift", "shift", float),
)

SAMPLER: Final = ("ss", "sample_sampler")
SAMPLERS: Final = ("euler", "k_euler")

REFUSED: Final[Mapping[tuple[str, str], str]] = {
    (
        "g",
        "guidance_scale",
    ): "it is of distilled models; use --l (scale in tables)",
    ("cn", "controlnet_image"): "remove it; there is no ControlNet here",
    ("am", "additional_network_multiplier"): "remove it; `anima-pipe sample --adapter "
    "FILE:STRENGTH` draws with adapters at any strength",
    ("ctr", "cfg_trunc_ratio"): "remove it; it is a setting of Lumina",
    ("rcfg", "renorm_cfg"): "remove it; it is a setting of Lumina",
    ("f", "frame_count"): "remove it; Anima draws pictures",
}
"""What Kohya's scripts for other models take: (letter, key), and what to do instead."""


class _Written(NamedTuple):
    """A setting as it stands in a file."""

    name: str
    value: Any
    place: str


BARE: Final = PreviewPrompt(prompt="")
"""What holds where a prompt says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Prompts being read."""

    defaults: PreviewPrompt
    """What holds where a prompt says nothing."""
    findings: list[Finding] = field(default_factory=list[Finding])
    """What was found wrong so far."""

    def object_to(self, place: str, problem: str, remedy: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(place=place, problem=problem, remedy=remedy))


class ExaminedPrompts(NamedTuple):
    """What a file of prompts holds."""

    prompts: list[PreviewPrompt]
    """All of them, without the settings that cannot be honoured."""
    findings: list[Finding]


def read_sample_prompts(path: Path, defaults: PreviewPrompt = BARE) -> list[PreviewPrompt]:
    """Read a file of prompts.

    Args:
        path: The file.
        defaults: What holds where a prompt says nothing.

    Raises:
        ConfigError: The file is missing or holds no prompt, or settings cannot be honoured.
    """
    prompts, findings = examine_sample_prompts(path, defaults)
    raise_findings(findings)
    return prompts


def examine_sample_prompts(path: Path, defaults: PreviewPrompt = BARE) -> ExaminedPrompts:
    """Read a file of prompts without stopping at what is wrong with one.

    Args:
        path: The file.
        defaults: What holds where a prompt says nothing.

    Raises:
        ConfigError: The file is missing, is of another form, or holds no prompt.
    """
    reading = _Reading(defaults=defaults)
    match path.suffix.lower():
        case ".txt":
            prompts = list(_text_prompts(path, reading))
        case ".toml":
            prompts = list(_toml_prompts(path, reading))
        case ".json":
            prompts = list(_json_prompts(path, reading))
        case suffix:
            raise ConfigError(
                f"{path}: {suffix or 'a file without extension'} is no form of prompts",
                "write one prompt a line into a .txt file; .toml and .json as Kohya reads them",
            )
    if not prompts and not reading.findings:
        raise ConfigError(f"{path} holds no prompt", "write one prompt a line into a .txt file")
    return ExaminedPrompts(prompts, reading.findings)


def is_prompt_table(table: Mapping[str, object]) -> bool:
    """Tell whether the content of a TOML file is prompts: options have no table of that name."""
    return isinstance(table.get("prompt"), dict)


def parse_prompt(line: str, place: str, defaults: PreviewPrompt = BARE) -> PreviewPrompt:
    """Read one line.

    Args:
        line: The prompt and its settings.
        place: Where it stands, for messages.
        defaults: What holds where the line says nothing.

    Raises:
        ConfigError: A setting is unknown, or its value does not fit.
    """
    reading = _Reading(defaults=defaults)
    _check_whole(line, place, reading)
    prompt = _line_prompt(line, place, reading)
    raise_findings(reading.findings)
    return prompt


def _line_prompt(line: str, place: str, reading: _Reading) -> PreviewPrompt:
    prompt, *parts = re.split(r"\s+--(?=\w)", " " + line)
    written: list[_Written] = []
    for part in parts:
        letter, _, value = part.partition(" ")
        written.append(_Written(f"--{letter.lower()}", value.strip(), place))
    return _with_settings(replace(reading.defaults, prompt=prompt.strip()), written, reading)


def with_settings(prompt: PreviewPrompt, values: Mapping[str, object], place: str) -> PreviewPrompt:
    """Return a prompt with other settings.

    Args:
        prompt: What it was.
        values: Texts by the letters of `SETTINGS`; None leaves one as it is.
        place: Where they stand, for messages.

    Raises:
        ConfigError: A value does not fit.
    """
    written = [
        _Written(f"--{letter}", str(value), place)
        for letter, value in values.items()
        if value is not None
    ]
    reading = _Reading(defaults=prompt)
    changed = _with_settings(prompt, written, reading)
    raise_findings(reading.findings)
    return changed


def _text_prompts(path: Path, reading: _Reading) -> Iterator[PreviewPrompt]:
    """Yield the prompts of lines; empty ones and those that start with # are passed over."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _line_prompt(line.strip(), f"{path} line {number}", reading)


def _toml_prompts(path: Path, reading: _Reading) -> Iterator[PreviewPrompt]:
    """Yield the prompts of [[prompt.subset]]; what a subset says itself wins over [prompt]."""
    file = read_toml(path)
    shared = file.table.get("prompt")
    subsets = cast("dict[str, Any]", shared).get("subset") if isinstance(shared, dict) else None
    if not isinstance(shared, dict) or not isinstance(subsets, list):
        raise ConfigError(
            f"{path} holds no [[prompt.subset]]",
            'write one for each picture: [prompt], then [[prompt.subset]] with prompt = "..."',
        )
    for number, subset in enumerate(cast("list[object]", subsets)):
        at = ("prompt", "subset", number)
        if not isinstance(subset, dict):
            reading.object_to(file.place(at), f"{subset!r} is no prompt", "write a table for it")
            continue
        own = cast("dict[str, Any]", subset)
        table = {
            name: _Written(name, value, file.place(("prompt", name)))
            for name, value in cast("dict[str, Any]", shared).items()
            if name != "subset"
        }
        table |= {
            name: _Written(name, value, file.place((*at, name))) for name, value in own.items()
        }
        yield from _table_prompt(table, file.place(at), reading)


def _json_prompts(path: Path, reading: _Reading) -> Iterator[PreviewPrompt]:
    """Yield the prompts of a list."""
    for place, element in _json_elements(path):
        _check_whole(json.dumps(element, ensure_ascii=False), place, reading)
        if isinstance(element, str):
            yield _line_prompt(element, place, reading)
        elif isinstance(element, dict):
            items = cast("dict[str, Any]", element).items()
            table = {name: _Written(name, value, place) for name, value in items}
            yield from _table_prompt(table, place, reading)
        else:
            problem = f"{element!r} is no prompt"
            reading.object_to(place, problem, "write a text or an object")


def _check_whole(text: str, place: str, reading: _Reading) -> None:
    """Add a finding where a text holds half a character: JSON, and bytes that are no UTF-8, may."""
    if half := half_character(text):
        reading.object_to(place, f"half a character, {half}", "write it whole, or remove it")


def _json_elements(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the elements of a JSON list with the places where they begin."""
    text = read_text(path)
    if not isinstance(parsed_json(text, path), list):
        raise ConfigError(f"{path} is not a JSON list", "write the prompts between [ and ]")
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    at = text.index("[") + 1
    while True:
        blank = between.match(text, at)
        assert blank, "it matches the empty text too"
        if text[blank.end()] == "]":
            return
        element, at = decoder.raw_decode(text, blank.end())
        yield f"{path} line {text.count(chr(10), 0, blank.end()) + 1}", element


def _table_prompt(
    table: dict[str, _Written], place: str, reading: _Reading
) -> Iterator[PreviewPrompt]:
    prompt = table.pop("prompt", None)
    if prompt is None or not isinstance(prompt.value, str):
        reading.object_to(place, "no prompt", 'write prompt = "..."')
    else:
        plain = replace(reading.defaults, prompt=prompt.value.strip())
        yield _with_settings(plain, list(table.values()), reading)


def _with_settings(
    prompt: PreviewPrompt, written: list[_Written], reading: _Reading
) -> PreviewPrompt:
    """Return a prompt with the settings that are written, each checked."""
    fields: dict[str, Any] = {}
    for item in written:
        setting = next((s for s in SETTINGS if item.name in (f"--{s.letter}", s.key)), None)
        try:
            if setting is None:
                _check_other(item)
            else:
                fields[setting.field] = _value(setting, item)
                _check_range(setting.field, fields[setting.field], item)
        except UnfitValueError as error:
            reading.object_to(item.place, error.problem, error.remedy)
    return replace(prompt, **fields)


def _check_other(item: _Written) -> None:
    """Let pass what names the sampler that is used anyway.

    Raises:
        UnfitValueError: It is anything else.
    """
    on_line = item.name.startswith("--")
    if item.name in (f"--{SAMPLER[0]}", SAMPLER[1]):
        if item.value not in SAMPLERS:
            raise UnfitValueError(
                f"sampler {item.value!r} is made for Stable Diffusion's noise",
                "use euler, or remove it",
            )
        return
    for (letter, key), instead in REFUSED.items():
        if item.name in (f"--{letter}", key):
            raise UnfitValueError(f"{item.name} has no meaning for Anima", instead)
    known = [f"--{s.letter}" if on_line else s.key for s in SETTINGS]
    raise UnfitValueError(f"unknown setting {item.name}", f"use one of {', '.join(known)}")


def _value(setting: Setting, item: _Written) -> int | float | str:
    """Return a setting's value in its type; texts stand for numbers on lines alone."""
    if setting.kind is str:
        if isinstance(item.value, str):
            return item.value
        raise UnfitValueError(f"{item.name} takes a text", "put it in quotes")
    wanted = "a whole number" if setting.kind is int else "a number"
    unfit = UnfitValueError(f"{item.name} takes {wanted}, not {item.value!r}", "correct it")
    on_line = item.name.startswith("--")
    if isinstance(item.value, bool) or isinstance(item.value, str) != on_line:
        raise unfit
    try:
        value = setting.kind(item.value)
    except (TypeError, ValueError, OverflowError) as error:
        raise unfit from error
    if value != float(item.value):
        raise unfit
    return value


def _check_range(field: str, value: Any, item: _Written) -> None:
    shown = f"{item.name} {value}"
    if field in ("width", "height") and (value < SIZE_STEP or value % SIZE_STEP):
        raise UnfitValueError(
            f"{field} {value} is not a multiple of {SIZE_STEP}",
            f"use {max(SIZE_STEP, round(value / SIZE_STEP) * SIZE_STEP)}",
        )
    if field == "steps" and not 1 <= value <= MOST_STEPS:
        raise UnfitValueError(f"{shown} steps", f"use 1 to {MOST_STEPS}; 30 is usual")
    if field == "seed" and not 0 <= value < 2**63:
        raise UnfitValueError(f"{shown} is no seed", "use a whole number, 0 or more")
    if field == "shift" and not 0 < value < float("inf"):
        raise UnfitValueError(f"{shown} is no shift", "use more than 0; 3 is usual")
    if field == "guidance" and not 0 <= value < float("inf"):
        raise UnfitValueError(f"{shown} is no guidance", "use 0 or more; 4 is usual, 1 is none")
