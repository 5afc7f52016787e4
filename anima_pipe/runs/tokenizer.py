"""A run that fetches and checks the T5 tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anima_pipe.demo import DEMO_T5_TOKENIZER
from anima_pipe.errors import PipeError
from anima_pipe.hub.home import record_models
from anima_pipe.hub.tokenizer import complete_t5_tokenizer
from anima_pipe.runs.settings.fetching import FetchTokenizerSettings
from anima_pipe.runtime import say, warn


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSummary:
    """Where the tokenizer is."""

    t5_tokenizer_dir: str
    downloaded: int
    """How many of its files were missing and are there now."""


def fetch_tokenizer(settings: FetchTokenizerSettings | None = None) -> TokenizerSummary:
    """Fetch what the folder lacks, check its files against each other, and note where it is.

    Args:
        settings: None: the released tokenizer, in its usual folder.

    Raises:
        ConfigError: Files are damaged, or some are missing and there is nowhere to fetch them from.
        FetchError: No source had the files.
        OutputError: The folder cannot be written.
    """
    settings = settings or FetchTokenizerSettings()
    folder = settings.folder
    fetched = complete_t5_tokenizer(folder, settings.sources, force=settings.force)
    _note_tokenizer(folder)
    news = f"fetched {', '.join(fetched)}" if fetched else "nothing to download"
    say(f"T5 tokenizer  {folder}: complete, {news}")
    return TokenizerSummary(t5_tokenizer_dir=str(folder), downloaded=len(fetched))


def _note_tokenizer(folder: Path) -> None:
    """Note where the tokenizer is, for runs that name no folder; the demo's fits no other model."""
    if folder.resolve() == DEMO_T5_TOKENIZER.resolve():
        return
    try:
        record_models({"t5_tokenizer_dir": folder})
    except PipeError as error:
        warn(f"{error.problem}: runs have to name the tokenizer's folder")
