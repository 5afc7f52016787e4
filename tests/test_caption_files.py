"""Captions on disk: which file, which lines, which text."""

from random import Random

import pytest

from anima_pipe.errors import DataError
from anima_pipe.source.caption_files import read_caption
from anima_pipe.source.captions import CaptionRules, render_caption


def read(tmp_path, content, *, enable_wildcard=False):
    (tmp_path / "a.txt").write_bytes(content)
    return read_caption(tmp_path / "a.png", ".txt", enable_wildcard=enable_wildcard)


@pytest.mark.parametrize(
    "text",
    [
        "1girl, solo",
        "星空の下の子狐",
        "Лисёнок, звёзды",
        "café, 狐 🦊",
        *(f"one{sign}line" for sign in "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_of_any_language_are_read_with_or_without_a_byte_order_mark(
    tmp_path, text, encoding
):
    assert read(tmp_path, text.encode(encoding)) == text
    assert render_caption(text, CaptionRules(enable_wildcard=True), rng=Random(0)) == text


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_the_first_line_counts_and_with_wildcards_every_line_that_is_not_blank(tmp_path, newline):
    content = newline.join(["", " one ", "  ", "two", ""]).encode()
    assert read(tmp_path, content) == "one"
    assert read(tmp_path, content, enable_wildcard=True) == "one\ntwo"


def test_a_suffix_lands_behind_the_first_of_several_lines(tmp_path):
    raw = read(tmp_path, b"one\ntwo\n")
    rules = CaptionRules(caption_prefix="P", caption_suffix="S")
    assert render_caption(raw, rules, rng=Random(0)) == "P one S"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_the_empty_caption_and_a_missing_one_is_none(tmp_path, content):
    assert read(tmp_path, content) == ""
    assert read_caption(tmp_path / "b.png", ".txt", enable_wildcard=False) is None


@pytest.mark.parametrize(
    ("image", "captions", "expected"),
    [
        ("ann_12_34_56_78.png", ["ann_12_34_56_78.txt", "ann.txt"], "ann_12_34_56_78.txt"),
        ("ann_12_34_56_78.png", ["ann.txt"], "ann.txt"),
        ("ann_lee_12_34_56_78.png", ["ann_lee.txt", "ann.txt"], "ann_lee.txt"),
        ("ann_12_34_56.png", ["ann.txt"], None),
        ("v1.5.final.png", ["v1.5.final.txt"], "v1.5.final.txt"),
        ("ann.png", ["ann.caption", "ann.png.txt"], None),
    ],
)
def test_a_face_crop_may_use_the_caption_of_the_picture_it_was_cut_from(
    tmp_path, image, captions, expected
):
    for name in captions:
        (tmp_path / name).write_text(name)
    assert read_caption(tmp_path / image, ".txt", enable_wildcard=False) == expected


@pytest.mark.parametrize(
    ("encoding", "byte", "position"), [("latin-1", "0xe9", 3), ("utf-16", "0xff", 0)]
)
def test_another_encoding_is_refused_with_the_file_and_the_byte(tmp_path, encoding, byte, position):
    with pytest.raises(DataError, match=rf"a\.txt is not UTF-8: byte {byte} at .* {position}"):
        read(tmp_path, "café".encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_not_taken_for_utf_8(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("1girl, solo", encoding=encoding)
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8: it has zero bytes"):
        read_caption(tmp_path / "a.png", ".txt", enable_wildcard=False)
