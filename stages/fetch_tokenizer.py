"""Stage 1: make sure that the T5 tokenizer is there and is Anima's.

Reads   the tokenizer's folder: config.json, spiece.model, tokenizer.json
Writes  nothing
Costs   a second
"""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import say


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSummary:
    """Where the tokenizer is."""

    t5_tokenizer_dir: str
    downloaded: int = 0


def run(options: Resolved) -> TokenizerSummary:
    """Check the tokenizer's files against each other."""
    from anima_pipe.encoders.t5_tokens import check_t5_tokenizer

    options.require("t5_tokenizer_dir")
    folder = options.value("t5_tokenizer_dir")
    check_t5_tokenizer(folder)
    say(f"T5 tokenizer  {folder}: complete, nothing to download")
    return TokenizerSummary(t5_tokenizer_dir=str(folder))


command = stage_command("fetch-tokenizer", run, __doc__)

if __name__ == "__main__":
    command()
