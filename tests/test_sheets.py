"""Sheets of pictures with labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from anima_pipe.drawing.lettering import LETTERS
from anima_pipe.drawing.sheets import CELL, ROW_LABEL, cell_of, draw_sheet, fitted

width_of = ImageFont.load_default(LETTERS).getlength


def red(width: int, height: int) -> Image.Image:
    return cell_of(Image.new("RGB", (width, height), "red"))


def test_a_large_picture_is_scaled_down_to_its_cell_and_a_small_one_is_not_scaled_up():
    assert red(832, 1216).size == (round(832 * CELL / 1216), CELL)
    assert red(64, 96).size == (64, 96)


def test_cells_keep_their_sizes_and_do_not_touch():
    sheet = draw_sheet(["", ""], ["", ""], [[red(40, 60), red(40, 60)], [red(80, 20)] * 2])
    reds = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
    assert reds.sum() == 2 * 40 * 60 + 2 * 80 * 20
    # A column of white between the columns, a row of white between the rows.
    assert _runs(reds.any(axis=0)) == _runs(reds.any(axis=1)) == 2


def _runs(line: np.ndarray) -> int:
    """Return how many runs of True there are."""
    return int((np.diff(line.astype(int), prepend=0) == 1).sum())


def test_labels_are_drawn_beside_their_row_and_above_their_column():
    cells = [[red(100, 60), red(100, 60)], [red(100, 60), red(100, 60)]]
    bare = draw_sheet(["", ""], ["", ""], cells)
    rows = draw_sheet(["", "second row"], ["", ""], cells)
    columns = draw_sheet(["", ""], ["", "step 20"], cells)
    assert bare.size == rows.size == columns.size
    left, top, right, bottom = _changed(bare, rows)
    assert right <= ROW_LABEL + 16
    assert top >= bare.height - 60 - 16
    left, top, right, bottom = _changed(bare, columns)
    assert left >= ROW_LABEL + 100
    assert bottom <= bare.height - 2 * 60


def _changed(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int]:
    from PIL import ImageChops

    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    return box


@given(st.text(max_size=200), st.integers(40, 300), st.integers(1, 5))
def test_a_label_fits_its_place_whatever_it_says(label, width, most_lines):
    lines = fitted(label, width, most_lines, width_of)
    assert 1 <= len(lines) <= most_lines
    assert all(width_of(line) <= max(width, 30) for line in lines)


def test_a_label_that_fits_is_whole_and_one_that_does_not_ends_in_dots():
    assert fitted("1girl, solo, smile", 300, 2, width_of) == ["1girl, solo, smile"]
    assert " ".join(fitted("1girl, solo, smile", 80, 9, width_of)) == "1girl, solo, smile"
    assert fitted("1girl, solo, smile, looking at viewer", 100, 1, width_of)[0].endswith("...")


def test_a_word_wider_than_a_line_is_broken():
    lines = fitted("fox-step00000500-and-more", 60, 9, width_of)
    assert "".join(lines) == "fox-step00000500-and-more"
    assert len(lines) > 1
