"""docs/architecture.md speaks of the tree as it is."""

from __future__ import annotations

import ast
import re

import pytest
from commands import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LIBRARY = ROOT / "anima_pipe"
TWO_SCREENS = 120
ELSEWHERE = {"anima_pipe.runs", "problem", "remedy", "stages"}
"""Packages, and what an error says."""


def defined_names() -> set[str]:
    """Return the functions, classes and methods of the library, these as Class.method too."""
    found: set[str] = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                found |= {f"{node.name}.{part.name}" for part in inner}
    return found


def rooms() -> set[str]:
    """Return the packages and modules at the top of the library."""
    return {
        path.stem
        for path in LIBRARY.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


def is_file(name: str) -> bool:
    """Tell whether a file or folder is there, from the library's top or the repository's."""
    return (LIBRARY / name).exists() or (ROOT / name).exists()


@pytest.fixture(scope="module")
def quoted() -> set[str]:
    return set(re.findall(r"`([^`\s]+)`", PAGE))


def test_the_page_on_architecture_names_functions_that_are_there(quoted: set[str]):
    names = {name for name in quoted if re.fullmatch(r"\w+(\.\w+)?", name) and not is_file(name)}
    assert len(names) > 30
    assert names - defined_names() - rooms() - ELSEWHERE == set()


def test_the_page_on_architecture_names_files_that_are_there(quoted: set[str]):
    paths = {name for name in quoted if "/" in name}
    assert len(paths) >= 4
    assert [path for path in paths if not is_file(path)] == []


def test_the_links_of_the_page_on_architecture_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)", PAGE)
    assert len(targets) >= 4
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_the_page_on_architecture_names_every_room_of_the_library():
    # How far something is, and how tensors are handled, are of no use to find one's way.
    assert {room for room in rooms() if room not in PAGE} <= {"foreach", "progress", "transfer"}


def test_the_page_on_architecture_fits_two_screens():
    assert len(PAGE.splitlines()) < TWO_SCREENS
