"""docs/options.md is what the tables say."""

from pathlib import Path

from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.docs import PAGE, options_page
from anima_pipe.kohya.options import OPTIONS
from anima_pipe.kohya.table.network_args import NETWORK_ARG_BY_SPELLING

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date():
    written = (ROOT / PAGE).read_text(encoding="utf-8")
    assert written == options_page(), "write it afresh: python -m anima_pipe.kohya.docs"


def test_the_page_names_every_option_and_key():
    page = options_page()
    names = [
        *(spelling for row in OPTIONS for spelling in row.spellings),
        *DATASET_KEYS,
        *NETWORK_ARG_BY_SPELLING,
    ]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_row_of_a_table_has_as_many_cells_as_its_heading():
    width = 0
    for line in options_page().splitlines():
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else 0
        assert cells in (0, width) or width == 0, line
        width = cells
