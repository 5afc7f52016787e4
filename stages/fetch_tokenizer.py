"""Stage 1: make sure that the T5 tokenizer is there and is Anima's; fetch what is missing.

Reads   the tokenizer's folder: config.json, spiece.model, tokenizer.json
Writes  those of them that it lacks, from Hugging Face or else ModelScope; a note of the folder
Costs   a second; 3 MB of download where files are missing
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.runs.tokenizer import TokenizerSummary


def run(options: Resolved) -> TokenizerSummary:
    """Fetch what is missing, and check the tokenizer's files against each other."""
    from anima_pipe.kohya.model_files import tokenizer_settings
    from anima_pipe.runs.tokenizer import fetch_tokenizer

    return fetch_tokenizer(tokenizer_settings(options, force=options.value("force")))


command = stage_command("fetch-tokenizer", run, __doc__)

if __name__ == "__main__":
    command()
