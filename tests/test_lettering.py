"""Labels in any script: no letter is drawn as the box that stands for one that a font lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from anima_pipe.drawing.lettering import Lettering, font_folders, lettering_for
from anima_pipe.drawing.sheets import draw_sheet


def write_font(folder: Path, letters: str) -> None:
    """Write a font in which every letter is a bar, each of another height."""
    folder.mkdir(parents=True)
    names = {letter: f"u{ord(letter):X}" for letter in letters}
    glyphs = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf({name: bar(900 - 100 * place) for place, name in enumerate(glyphs)})
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(folder / "Bars.ttf")


def bar(height: int):
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, height), (300, height), (300, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def drawn(lettering: Lettering, text: str) -> np.ndarray:
    sheet = Image.new("RGB", (200, 20), "white")
    lettering.write(ImageDraw.Draw(sheet), (0, 0), text)
    return np.asarray(sheet).min(axis=2) < 128


def test_letters_that_the_built_in_font_lacks_are_taken_from_a_font_of_the_system(tmp_path):
    write_font(tmp_path / "fonts" / "deep", "狐猫")
    lettering = Lettering("fox狐猫", [tmp_path / "fonts"])

    assert lettering.legible("fox 狐猫") == "fox 狐猫"
    fox, cat = drawn(lettering, "狐"), drawn(lettering, "猫")
    assert fox.any(axis=1).sum() == cat.any(axis=1).sum() + 1, "bars of their own heights"
    end = int(lettering.length("fox"))
    assert np.array_equal(drawn(lettering, "fox狐")[:, :end], drawn(lettering, "fox")[:, :end])
    assert lettering.length("狐猫") == 28
    assert lettering.length("a 狐") == pytest.approx(lettering.length("a ") + 14)


def test_letters_that_no_font_has_are_counted(tmp_path):
    lettering = Lettering("abก狐のж", [])

    assert lettering.legible("ab狐, のжの") == "ab[1 letter], [3 letters]"
    assert lettering.legible("ก\u0e49ก") == "[2 letters]", "a mark belongs to its letter"
    assert lettering.legible("a\u200d\u0301b\a") == "\xe1b"


def test_a_row_that_cannot_be_written_whole_has_its_number():
    cell = Image.new("RGB", (60, 60), "red")
    cells = [[cell]] * 2
    # Unassigned for ever: no font has it.
    unknown = draw_sheet(["fox", "\ufdd0"], ["step 0"], cells)
    counted = draw_sheet(["fox", "01: [1 letter]"], ["step 0"], cells)
    assert unknown.tobytes() == counted.tobytes()


def test_no_label_needs_a_box_on_this_machine():
    """Whatever fonts there are: what is written differs from letter to letter."""
    for pair in ("狐猫", "のは", "жи", "여우", "éè", "กข"):
        lettering = lettering_for([pair])
        if lettering.legible(pair) == pair:
            assert not np.array_equal(*(drawn(lettering, letter) for letter in pair))
        else:
            assert lettering.legible(pair) == "[2 letters]"
    assert all(folder.is_dir() for folder in font_folders())
