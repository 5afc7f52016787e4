"""Stage 2: choose a bucket for every picture, and cache what the VAE makes of it, and masks.

Reads   the dataset's pictures and masks, the VAE
Writes  shards of latents and masks under the cache folder; what is there is not encoded again
Costs   the VAE's time; a second when nothing has changed

Launched several times at once (accelerate launch --num_processes N -m ...), on one machine or on
several that share the folders, each process encodes its part of what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.runs.latents import LatentSummary


def run(options: Resolved) -> LatentSummary:
    """Survey the dataset's pictures and encode those that the cache lacks."""
    from anima_pipe.kohya.caching import cache_latents_settings
    from anima_pipe.runs.latents import cache_latents

    return cache_latents(cache_latents_settings(options))


command = stage_command("cache-latents", run, __doc__)

if __name__ == "__main__":
    command()
