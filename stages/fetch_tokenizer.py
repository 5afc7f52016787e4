"""Stage 1: make sure that the T5 tokenizer is there and is Anima's; fetch what is missing.

Reads   the tokenizer's folder: config.json, spiece.model, tokenizer.json
Writes  those of them that it lacks, from Hugging Face or else ModelScope; a note of the folder
Costs   a second; 3 MB of download where files are missing
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.errors import PipeError
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import say, warn


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSummary:
    """Where the tokenizer is."""

    t5_tokenizer_dir: str
    downloaded: int
    """How many of its files were missing and are there now."""


def run(options: Resolved) -> TokenizerSummary:
    """Fetch what is missing, and check the tokenizer's files against each other."""
    from anima_pipe.kohya.model_files import with_tokenizer

    options, fetched = with_tokenizer(options, force=options.value("force"))
    folder: Path = options.value("t5_tokenizer_dir")
    note_tokenizer(folder)
    news = f"fetched {', '.join(fetched)}" if fetched else "nothing to download"
    say(f"T5 tokenizer  {folder}: complete, {news}")
    return TokenizerSummary(t5_tokenizer_dir=str(folder), downloaded=len(fetched))


def note_tokenizer(folder: Path) -> None:
    """Note where the tokenizer is, for runs that name no folder; the demo's fits no other model."""
    from anima_pipe.demo import DEMO_T5_TOKENIZER
    from anima_pipe.hub.home import record_models

    if folder.resolve() == DEMO_T5_TOKENIZER.resolve():
        return
    try:
        record_models({"t5_tokenizer_dir": folder})
    except PipeError as error:
        warn(f"{error.problem}: runs have to name the tokenizer's folder")


command = stage_command("fetch-tokenizer", run, __doc__)

if __name__ == "__main__":
    command()
