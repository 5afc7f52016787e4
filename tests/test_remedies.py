"""What the program says to do can be done: its commands and options are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
from commands import ROOT

from anima_pipe import runs
from anima_pipe.adapters.registry import KINDS
from anima_pipe.adapters.rules import RankRules, RateRules
from anima_pipe.adapters.settings import field_types
from anima_pipe.adapters.targets import TargetRules
from anima_pipe.cli.main import COMMANDS, main
from anima_pipe.kohya.options import find_option
from anima_pipe.runs.settings import FIELDS

SOURCES = sorted(
    path for folder in ("anima_pipe", "stages") for path in (ROOT / folder).rglob("*.py")
)
COMMAND = re.compile(r"`anima-pipe ([a-z][a-z-]*)((?: [a-z][a-z-]*)?)")
OPTION = re.compile(r"(?<![\w-])--(?:no-)?([a-z][a-z0-9_-]*[a-z0-9])")
OF_OTHER_PROGRAMS = {"gpu_ids", "logdir", "host", "port"}
"""Options of accelerate launch and TensorBoard."""
PLACEHOLDERS = {"name", "no"}


def own_words(path: Path) -> Iterator[str]:
    """Yield the texts of a module that are not its documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documented
        ):
            yield node.value


def options_of_commands(command: click.Command) -> Iterator[str]:
    """Yield the options of a command and of all commands under it, without dashes."""
    context = click.Context(command)
    for parameter in command.get_params(context):
        yield from (name.lstrip("-") for name in (*parameter.opts, *parameter.secondary_opts))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options_of_commands(below)


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    return {*options_of_commands(main), *OF_OTHER_PROGRAMS, *PLACEHOLDERS}


def test_every_command_that_messages_name_is_there():
    named = {m for path in SOURCES for words in own_words(path) for m in COMMAND.findall(words)}
    context = click.Context(main)
    assert len(named) >= 10
    for name, second in named:
        assert name in COMMANDS, name
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            assert second.strip() in command.list_commands(context), f"{name}{second}"


def test_every_option_that_messages_name_is_there(known_options: set[str]):
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for words in own_words(path)
        for name in OPTION.findall(words)
    }
    assert len(named) > 40
    unknown = {
        (path, name)
        for path, name in named
        if name not in known_options and find_option(name) is None
    }
    assert not unknown


OF_COMMANDS = {
    *("gpu_ids", "merge", "drop", "energy", "whole", "rank", "cache", "no"),
    *("models_dir", "models", "comfyui"),
}
"""What remedies name that is no setting of a run: words of launchers, of tools for adapters
and of fetch-models."""


def settings_classes() -> dict[str, type]:
    """Return the dataclasses of settings that the library offers, and those within them."""
    kinds = ("Settings", "Config", "Rules", "Prompt")
    waiting = [getattr(runs, name) for name in dir(runs) if name.endswith(kinds)]
    classes: dict[str, type] = {}
    while waiting:
        each = waiting.pop()
        if each.__name__ not in classes:
            classes[each.__name__] = each
            waiting += [hint for hint in all_hints(each) if is_dataclass(hint)]
    return classes


def all_hints(of: type) -> Iterator[type]:
    """Yield the classes in the annotations of a dataclass's fields."""
    inner = list(get_type_hints(of).values())
    while inner:
        hint = inner.pop()
        inner += get_args(hint)
        if isinstance(hint, type):
            yield hint


def test_an_option_that_a_runs_error_names_is_a_field_of_its_settings():
    classes = settings_classes()
    known = {field.name for each in classes.values() for field in fields(each)}
    rules = (TargetRules, RankRules, RateRules, *(kind.config for kind in KINDS.values()))
    known |= {name for each in rules for name in field_types(each)}
    known |= signature(runs.open_place).parameters.keys()
    for option, place in FIELDS.items():
        name, field = place.split(".")
        assert find_option(option) is not None
        assert field in {each.name for each in fields(classes[name])}
    named = {
        (str(path.relative_to(ROOT)), word)
        for path in SOURCES
        if path.parts[-2] not in ("kohya", "cli", "table", "demo", "stages")
        for remedy in remedies(path)
        for word in re.findall(r"[a-z][a-z0-9_]+", remedy)
        if ("_" in word and find_option(word)) or f"--{word}" in remedy
    }
    assert len(named) > 40
    assert {pair for pair in named if pair[1] not in {*known, *FIELDS, *OF_COMMANDS}} == set()


def remedies(path: Path) -> Iterator[str]:
    """Yield what a module's errors name: the text of their remedies, and the settings checked."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and len(node.args) > 1:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called.startswith("check_") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)
            if called.endswith("Error"):
                for piece in ast.walk(node.args[1]):
                    if isinstance(piece, ast.Constant) and isinstance(piece.value, str):
                        yield piece.value
