"""Writing TOML: whatever is written reads back as it was."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.kohya.toml_text import toml_lines, toml_value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5
)


@given(st.dictionaries(TEXTS, VALUES))
def test_what_is_written_reads_back_the_same(table: dict[str, object]):
    assert tomllib.loads("\n".join(toml_lines(table))) == table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1e-8, "1e-08"),
        (1.0, "1.0"),
        (Path("a/b.toml"), '"a/b.toml"'),
        ((1024, 768), "[1024, 768]"),
        ('say "hi"', r'"say \"hi\""'),
        ({"image_dir": "a"}, '{ image_dir = "a" }'),
    ],
)
def test_values_are_written_as_people_write_them(value: object, text: str):
    assert toml_value(value) == text
