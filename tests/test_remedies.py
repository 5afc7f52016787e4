"""What the program says to do can be done: its commands and options are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import ROOT

from anima_pipe.cli.main import COMMANDS, main
from anima_pipe.kohya.options import find_option

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
