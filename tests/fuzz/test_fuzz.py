"""Whatever stands in a file: one clear error or a right result, soon, and in little memory.

ANIMA_PIPE_FUZZ_EXAMPLES says how many examples each target gets. `make fuzz` looks for longer, led
by what code its examples reach; what it finds is kept in `cases/`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, Target, checked
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("ANIMA_PIPE_FUZZ_EXAMPLES", "40"))
CASES = sorted(path for path in (Path(__file__).parent / "cases").glob("*/*"))
CHANGES = 6
LONGEST_PIECE = 40


@st.composite
def altered(draw: st.DrawFn, target: Target) -> bytes:
    """Draw what a target is made to read, with some places cut out, repeated or replaced."""
    content = draw(st.sampled_from(target.seeds()))
    for _ in range(draw(st.integers(0, CHANGES))):
        start = draw(st.integers(0, len(content)))
        piece = content[start : start + draw(st.integers(0, LONGEST_PIECE))]
        drawn = st.sampled_from(target.tokens) | st.binary(max_size=8)
        put = draw(drawn | st.sampled_from((b"", piece * 2, piece * 200)))
        content = content[:start] + put + content[start + len(piece) :]
    return content


@pytest.fixture(scope="module")
def ready() -> dict[str, Target]:
    """The targets, of which each has read once: what it imports is nobody's fault."""
    for target in TARGETS.values():
        for seed in target.seeds():
            try:
                checked(target, seed)
            except AssertionError as error:
                assert "took" in str(error)  # noqa: PT017
    return TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_examples_are_made_of_is_right(name: str, tmp_path: Path):
    for number, seed in enumerate(TARGETS[name].seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        TARGETS[name].read(seed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_read_is_right_or_one_error_of_ours(ready: dict[str, Target], name: str):
    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(altered(ready[name]))
    def reads(content: bytes) -> None:
        checked(ready[name], content)

    reads()


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_before_is_right_or_one_error_of_ours(ready: dict[str, Target], case: Path):
    checked(ready[case.parent.name], case.read_bytes())
