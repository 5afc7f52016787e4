"""The help of every command fits a terminal and keeps what it is made of apart."""

import click
import pytest
from click.testing import CliRunner

from anima_pipe.cli.help_text import help_text
from anima_pipe.cli.main import COMMANDS, main


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def commands() -> list[tuple[str, ...]]:
    """Every command, those of groups included."""
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_no_line_is_wider_than_a_terminal(command: tuple[str, ...]):
    assert [line for line in help_of(*command).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", [*COMMANDS])
def test_the_overview_names_every_command(command: str):
    assert f"\n  {command} " in help_of()


@pytest.mark.parametrize("group", ["cache", "config"])
def test_the_overview_of_a_group_cuts_no_sentence(group: str):
    listed = help_of(group).partition("Commands:\n")[2].splitlines()

    assert len(listed) >= 3
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_the_caches_options_may_be_written_with_dashes_and_are_listed_once():
    written = CliRunner().invoke(main, ["cache", "stats", "--cache-dir", "nowhere"])

    assert "there is no cache in nowhere" in written.output
    assert "--cache-dir" not in help_of("cache", "stats")


def test_a_stages_table_keeps_its_labels_in_a_column():
    lines = help_of("train").splitlines()

    (reads,) = (number for number, line in enumerate(lines) if line.startswith("  Reads   "))
    assert lines[reads + 1].startswith(" " * 10)
    assert any(line.startswith("  Writes  ") for line in lines)


def test_a_text_without_a_table_is_left_to_click():
    assert help_text("One.\n\nTwo\nlines.\n") == "One.\n\nTwo\nlines."
