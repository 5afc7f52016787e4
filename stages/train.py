"""Stage 4: train an adapter, or the model itself, on the cached latents and texts.

Reads   latent and text shards, the transformer; the VAE only to draw previews
Writes  adapters or a checkpoint, previews, logs; with --auto_cache (the default) missing shards too
Costs   the transformer's memory in the run's precision, plus what trains and its optimizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.cli.show_dataset import ShownDataset
    from anima_pipe.objective.noise_chart import NoiseChart
    from anima_pipe.runs import TrainSummary


def run(options: Resolved) -> TrainSummary | NoiseChart | ShownDataset:
    """Train, or only show the noise levels or the samples that training would draw."""
    from anima_pipe.cli.show_dataset import show_dataset
    from anima_pipe.cli.show_timesteps import show_timesteps

    if options.value("show_timesteps"):
        return show_timesteps(options)
    if options.value("debug_dataset"):
        return show_dataset(options)
    from anima_pipe.kohya.training import train_settings
    from anima_pipe.runs import train
    from anima_pipe.runtime import launched_rank, speak_of_errors_only

    if launched_rank().number > 0:
        # All processes read the same options: the first one says what there is to say.
        speak_of_errors_only()
    return train(train_settings(options))


command = stage_command("train", run, __doc__)

if __name__ == "__main__":
    command()
