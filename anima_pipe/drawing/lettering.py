"""Writing labels in any script: the built-in font, fonts of the system, or a count of letters.

The font that comes with Pillow has ASCII and little else; it draws a box for every other letter.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from anima_pipe.runtime import counted

LETTERS: Final = 14
"""Height of the letters, in pixels."""
ASCENT: Final = 13
"""From the top of a line to the baseline that letters of all fonts stand on, in pixels."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_SUFFIXES: Final = (".ttf", ".ttc", ".otf")
STYLES: Final = re.compile(
    r"bold|italic|oblique|light|thin|black|mono|condensed|serif", re.IGNORECASE
)
"""Words in the names of fonts that are less plain than others."""
NO_LETTERS: Final = re.compile(r"lastresort|adobeblank|notdef", re.IGNORECASE)
"""Fonts that have a box or nothing for every letter there is."""
_FIRST: Final = operator.itemgetter(0)
NO_CHARACTER: Final = "\uffff"
"""What no font has a letter for: what is drawn for it is drawn for all that are missing."""


class Lettering:
    """Fonts that have the letters of some labels between them, as far as there are any.

    Args:
        letters: All letters that are to be written.
        folders: Where fonts are looked for.
    """

    def __init__(self, letters: str, folders: Sequence[Path]) -> None:
        self._built_in = ImageFont.load_default(LETTERS)
        plain = _shown(self._built_in, letters)
        self._fonts: dict[str, Font] = dict.fromkeys(plain, self._built_in)
        missing = set(letters) - self._fonts.keys()
        while missing and (found := _best_fonts(missing, folders)):
            self._fonts |= found
            missing -= found.keys()
        self._missing = missing

    def legible(self, label: str) -> str:
        """Return a label with a count in the place of letters that no font has."""
        missing = [False]
        text = _visible(label)
        for letter in text:
            missing.append(missing[-1] if _is_mark(letter) else letter in self._missing)
        written = ""
        for is_missing, parts in itertools.groupby(zip(missing[1:], text, strict=True), _FIRST):
            run = "".join(letter for _, letter in parts)
            letters = sum(not _is_mark(letter) for letter in run)
            written += f"[{counted(letters, 'letter')}]" if is_missing else run
        return written

    def length(self, text: str) -> float:
        """Return the width of a text, in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def write(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
        """Draw a line of text with its upper left corner at a place."""
        left, top = place
        for font, run in self._runs(text):
            pen.text((left, top + ASCENT), run, fill="black", font=font, anchor="ls")
            left += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """Yield the parts of a text, each in one font; spaces and marks stay with those."""
        fonts = [self._built_in]
        for letter in text:
            stays = letter == " " or _is_mark(letter)
            fonts.append(fonts[-1] if stays else self._fonts.get(letter, self._built_in))
        parted = itertools.groupby(zip(fonts[1:], text, strict=True), lambda part: id(part[0]))
        for _, parts in parted:
            run = list(parts)
            yield run[0][0], "".join(letter for _, letter in run)


def lettering_for(labels: Sequence[str]) -> Lettering:
    """Return what labels can be written with."""
    letters = {c for c in _visible(" ".join(labels)) if not _is_mark(c)}
    return _lettering(frozenset(letters))


@functools.cache
def _lettering(letters: frozenset[str]) -> Lettering:
    # A contact sheet is drawn anew with every preview, with the same letters.
    return Lettering("".join(sorted(letters)), font_folders())


def _visible(label: str) -> str:
    """Return a label in letters and marks on them, without what steers writing, such as joiners.

    Marks that cannot be part of their letter stay on letters of a system's font alone: which marks
    the built-in font lacks cannot be told.
    """
    kept = [c for c in label if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")]
    visible = ""
    for letter in unicodedata.normalize("NFC", "".join(kept)):
        if not (_is_mark(letter) and visible[-1:].isascii()):
            visible += letter
    return visible


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"


def font_folders() -> list[Path]:
    """Return the folders that hold fonts on Linux, macOS and Windows, as far as they are there."""
    home = Path.home()
    data = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    folders = [
        *(Path(folder) / "fonts" for folder in data),
        *(home / ".local/share/fonts", home / ".fonts", home / "Library/Fonts"),
        *(Path("/System/Library/Fonts"), Path("/Library/Fonts")),
        Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
        home / "AppData/Local/Microsoft/Windows/Fonts",
    ]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _best_fonts(letters: set[str], folders: Sequence[Path]) -> dict[str, Font]:
    """Return for each script the font that has most of its letters, by those letters."""
    wanted: dict[str, list[str]] = {}
    for letter in sorted(letters):
        wanted.setdefault(unicodedata.name(letter, "").partition(" ")[0], []).append(letter)
    best: dict[str, dict[str, Font]] = {script: {} for script in wanted}
    for font in _fonts_in(folders):
        for script, own in [*wanted.items()]:
            # Most fonts have nothing of a script, and one letter tells.
            shown = _shown(font, own) if _shown(font, own[:1]) else []
            if len(shown) > len(best[script]):
                best[script] = dict.fromkeys(shown, font)
            if len(shown) == len(own):
                del wanted[script]
        if not wanted:
            break
    return {letter: font for found in best.values() for letter, font in found.items()}


def _fonts_in(folders: Sequence[Path]) -> Iterator[Font]:
    files = {path for folder in folders for path in folder.rglob("*")}
    usable = [
        path
        for path in files
        if path.suffix.lower() in FONT_SUFFIXES and not NO_LETTERS.search(path.name)
    ]
    for path in sorted(usable, key=_plainness):
        try:
            yield ImageFont.truetype(str(path), LETTERS)
        except OSError:
            continue  # Not of this size, as fonts of emoji are, or damaged.


def _plainness(path: Path) -> tuple[int, bool, str]:
    styles = len(STYLES.findall(path.stem))
    return styles, "sans" not in path.name.lower(), str(path)


def _shown(font: Font, letters: Iterable[str]) -> list[str]:
    """Return the letters that a font has; spaces leave no trace, and need none."""
    missing = _drawn(font, NO_CHARACTER)
    return [letter for letter in letters if letter.isspace() or _drawn(font, letter) != missing]


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    width, height = (round(side) for side in font.getbbox(letter)[2:])
    picture = Image.new("L", (max(1, width), max(1, height)))
    ImageDraw.Draw(picture).text((0, 0), letter, fill=255, font=font)
    return picture.size, picture.tobytes()
