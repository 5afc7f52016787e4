"""What `fetch_tokenizer` needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anima_pipe.hub.home import tokenizer_folder
from anima_pipe.hub.sources import T5_SOURCES, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTokenizerSettings:
    """Where the T5 tokenizer is to be, and where it comes from."""

    folder: Path = field(default_factory=tokenizer_folder)
    """It need not exist; files that are there stay."""
    sources: tuple[Source, ...] = T5_SOURCES
    """Where missing files are looked for, in this order, each source with its folder and revision;
    none: nothing is fetched, and a file that is lacking is an error."""
    force: bool = False
    """Whether all files are fetched afresh and replace those that are there."""
