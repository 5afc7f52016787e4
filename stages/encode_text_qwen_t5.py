"""Stage 3: render every caption's variants, and cache what Qwen3 and the T5 tokenizer make of them.

Reads   the dataset's captions, Qwen3, the T5 tokenizer, the prompts of previews
Writes  text shards under the cache folder; texts already there are not encoded again
Costs   Qwen3's time; a second when nothing has changed

Launched several times at once (accelerate launch --num_processes N -m ...), on one machine or on
several that share the folders, each process encodes its part of what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.runs.texts import TextSummary


def run(options: Resolved) -> TextSummary:
    """Collect the dataset's texts and encode those that the cache lacks."""
    from anima_pipe.kohya.caching import encode_text_settings
    from anima_pipe.runs.texts import encode_text

    return encode_text(encode_text_settings(options))


command = stage_command("encode-text", run, __doc__)

if __name__ == "__main__":
    command()
