"""The code stays readable in its tail, too: no long function, no file of two subjects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT

LIBRARY = ("anima_pipe", "stages")
LONGEST_FUNCTION = 60
USUAL_FUNCTION = 30
LONGEST_FILE = 360


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def function_lengths(path: Path) -> Iterator[tuple[int, str]]:
    """Yield how many lines each function of a file has, docstring included, and where it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}: {node.name}"


@pytest.fixture(scope="module")
def functions() -> list[tuple[int, str]]:
    found = [one for path in sources(*LIBRARY) for one in function_lengths(path)]
    assert len(found) > 2000
    return found


def test_no_function_is_longer_than_a_screen(functions: list[tuple[int, str]]):
    assert [one for one in functions if one[0] > LONGEST_FUNCTION] == []


def test_all_but_a_twentieth_of_the_functions_are_short(functions: list[tuple[int, str]]):
    long = sum(length >= USUAL_FUNCTION for length, _ in functions)
    assert long / len(functions) < 0.05


def test_no_file_holds_two_subjects():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").split("\n")) - 1
        for path in sources(*LIBRARY, "tools")
    }
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}
