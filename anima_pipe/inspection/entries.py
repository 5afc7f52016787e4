"""What is known of a dataset that was looked at, as plain records: what a page of it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from anima_pipe.records import Skipped

Flag = Literal[
    "broken", "duplicate", "alike", "enlarged", "uncaptioned", "long", "held-out", "regularisation"
]

FLAGS: Final[Mapping[Flag, tuple[str, str]]] = {
    "broken": ("cannot be decoded", "The header can be read, the pixels cannot."),
    "duplicate": ("duplicate", "Another file has the very same bytes."),
    "alike": ("near-duplicate", "Another picture looks the same, or nearly."),
    "enlarged": ("enlarged", "Smaller than its bucket: it is scaled up to be trained on."),
    "uncaptioned": ("no caption", "Trained with the empty caption."),
    "long": ("long caption", "More than 512 T5 tokens; kept whole, as ComfyUI keeps them."),
    "held-out": ("validation", "Held out, and not trained on."),
    "regularisation": ("regularisation", "Of a subset with is_reg."),
}
"""What a picture may be marked with: its name, and what it means."""

OTHERS_KEPT: Final = 12
"""How many others a picture is said to be like: a thousand alike would be a million names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is to see of one picture."""

    thumbnail: str = ""
    """A data: URI; empty where none was asked for, or the picture cannot be decoded."""
    likeness: int | None = None
    """See `likeness.difference_hash`."""
    problem: str = ""
    """Why it cannot be decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One text that is encoded for a picture."""

    text: str
    qwen_tokens: int
    t5_tokens: int | None
    """Its closing </s> included; None where no tokenizer is known."""

    @property
    def tokens(self) -> int:
        """T5's where they are known, else Qwen's."""
        return self.qwen_tokens if self.t5_tokens is None else self.t5_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A crop as shares of the whole picture, each in [0, 1]."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One picture of one subset."""

    number: int
    """From 0, in the order of the dataset."""
    path: Path
    size: tuple[int, int]
    bucket: tuple[int, int]
    scale: float
    """Factor by which it is resized; above 1 it is enlarged."""
    boxes: tuple[Box, ...]
    """What is cropped, one for each crop variant."""
    visits: int
    """Per epoch."""
    mirrored: bool
    """Whether it is trained on mirrored too."""
    variants: tuple[Variant, ...]
    look: Look
    flags: frozenset[Flag]
    same: tuple[int, ...]
    """Numbers of other files with the same bytes, at most `OTHERS_KEPT`."""
    near: tuple[int, ...]
    """Numbers of other pictures that look alike, at most `OTHERS_KEPT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One subset."""

    path: Path
    pictures: int
    repeats: int
    visits: int
    """Per epoch, of all its pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """All that is known of a dataset."""

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    folders: tuple[Folder, ...]
    tags: Counter[str] = field(default_factory=Counter[str])
    """In how many pictures' captions each one is."""
