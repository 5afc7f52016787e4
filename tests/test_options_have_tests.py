"""For each honoured option the table names a test of its effect, which exists and speaks of it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.options import OPTIONS, Honoured, Option

TESTS = Path(__file__).parent
OWN_KEYS = [key.row for key in DATASET_KEYS.values() if key.fallback is None]
HONOURED = [row for row in (*OPTIONS, *OWN_KEYS) if isinstance(row.status, Honoured)]


@cache
def words_of_tests(file: Path) -> dict[str, set[str]]:
    """The words of each test function of a file, and of what stands there beside the tests."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    words: dict[str, set[str]] = {"": set()}
    for node in ast.parse(text).body:
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        start = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        found = set(re.findall(r"\w+", "\n".join(lines[start - 1 : node.end_lineno])))
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        words.setdefault(node.name if is_test else "", set()).update(found)
    return words


def complaint(row: Option) -> str | None:
    """What is wrong with the test that a row names."""
    if not row.test:
        return "names no test"
    name, colons, function = row.test.partition("::")
    file = TESTS / name
    if not colons or not file.is_file():
        return f"names {row.test}, but there is no file {name}"
    words = words_of_tests(file)
    if function not in words or not function:
        return f"names {row.test}, but there is no such test"
    if not {*row.spellings} & (words[function] | words[""]):
        return f"names {row.test}, which does not speak of it"
    return None


@pytest.mark.parametrize("row", HONOURED, ids=lambda row: row.name)
def test_an_honoured_option_names_a_test_that_speaks_of_it(row: Option):
    assert complaint(row) is None, f"{row.name} {complaint(row)}"


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("", "names no test"),
        ("test_nowhere.py::test_a", "there is no file"),
        ("test_options.py", "there is no file"),
        ("test_options.py::test_nothing_at_all", "there is no such test"),
        ("test_options.py::test_no_spelling_stands_twice", "does not speak of it"),
    ],
)
def test_a_row_without_a_proper_test_is_found(test: str, problem: str):
    row = Option(name="vae_of_no_use", kind=HONOURED[0].kind, help="Help.", test=test)

    assert problem in (complaint(row) or "")
