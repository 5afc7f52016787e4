"""Pages: whole or not written, in the memory of one card, with charts that tell their numbers."""

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from anima_pipe.inspection.entries import Box, Entry, Folder, Inspection, Look, Variant
from anima_pipe.pages.charts import Column, chart_of_columns, chart_of_row
from anima_pipe.pages.dataset import write_dataset_page
from anima_pipe.pages.rendering import write_page

THUMBNAIL = f"data:image/webp;base64,{'A' * 20_000}"


def entry(number: int, name: str = "fox.png") -> Entry:
    return Entry(
        number=number,
        path=Path("/pictures") / name,
        size=(300, 200),
        bucket=(256, 192),
        scale=0.96,
        boxes=(Box(left=0, top=0, width=1, height=1),),
        visits=1,
        mirrored=False,
        variants=(Variant(text="fox", qwen_tokens=1, t5_tokens=2),),
        look=Look(thumbnail=THUMBNAIL),
        flags=frozenset(),
        same=(),
        near=(),
    )


def inspection(*entries: Entry) -> Inspection:
    folder = Folder(path=Path("/pictures"), pictures=len(entries), repeats=1, visits=len(entries))
    return Inspection(entries=entries, skipped=(), folders=(folder,), tags=Counter(fox=1))


def written(path: Path, *entries: Entry) -> int:
    """Write a page; return the most memory that this took, in bytes."""
    inspected = inspection(*entries)
    tracemalloc.start()
    write_dataset_page(path, inspected, title="foxes", shown=entries)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_page_of_many_pictures_takes_no_more_memory_than_one_of_few(tmp_path: Path):
    few, many = tmp_path / "few.html", tmp_path / "many.html"
    written(few, entry(0))  # reads the templates, once

    grown = written(many, *map(entry, range(500))) - written(few, *map(entry, range(50)))

    assert many.stat().st_size - few.stat().st_size > 450 * len(THUMBNAIL)
    assert grown < 20 * len(THUMBNAIL)


def test_a_page_whose_template_names_what_is_not_there_leaves_the_one_before(tmp_path: Path):
    path = tmp_path / "page.html"
    written(path, entry(0))
    before = path.read_bytes()

    with pytest.raises(UndefinedError, match="title"):
        write_page(path, "dataset.html", page={}, cards=())

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_text_is_shown_by_its_bytes(tmp_path: Path):
    path = tmp_path / "page.html"
    written(path, entry(0, "fox\udcff.png"))

    assert '<h3 title="/pictures/fox\\xff.png">fox\\xff.png</h3>' in path.read_text("utf-8")


def columns(*counts: int) -> list[Column]:
    return [Column(name=str(n), count=n, meaning=f"{n} pictures") for n in counts]


def test_columns_are_as_high_as_their_numbers_and_stand_on_one_line():
    bars = chart_of_columns(columns(20, 5, 10), label="pictures").bars

    heights = [bar.height / bars[0].height for bar in bars]
    assert heights == pytest.approx([1, 0.25, 0.5])
    assert len({round(bar.top + bar.height, 9) for bar in bars}) == 1
    assert [bar.left for bar in bars] == pytest.approx([0, 1 / 3, 2 / 3])
    assert all(bar.top > 0.1 for bar in bars), "no room for the number above"


def test_a_column_of_nothing_is_a_line_without_a_number():
    none, some = chart_of_columns(columns(0, 1_000), label="pictures").bars

    assert 0 < none.height < 0.02
    assert (none.value, some.value) == ("", "1,000")
    assert chart_of_columns(columns(0, 0), label="pictures").bars[1].height == none.height


def test_the_smallest_share_of_a_row_is_still_seen():
    [bar] = chart_of_row(1e-6).bars

    assert bar.width == 0.01
    assert chart_of_row(0.5).bars[0].width == 0.5
