"""From the settings of a run to what it writes: adapters, states, previews."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from anima_pipe.drawing.painter import LazyVae, Painter, base_name, encoded_prompts
from anima_pipe.files import rehearse, require_readable_name
from anima_pipe.hooks.previews import PreviewConfig, Previews
from anima_pipe.hooks.saving import SaveConfig
from anima_pipe.hooks.train_state import StateConfig
from anima_pipe.runs.data import PreparedData
from anima_pipe.runs.metadata import run_metadata
from anima_pipe.runs.prepare import Training
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.trainer import TrackerConfig
from anima_pipe.weights.writing import serialized

LONGEST_ENDING: Final = "-ema-step00000000.safetensors"
"""Of all that follows a run's name in the names of files and folders."""


def save_config(settings: TrainSettings, seed: int, data: PreparedData) -> SaveConfig:
    """Return when adapters are saved, and all that their files will say of the run.

    Raises:
        ConfigError: The thumbnail cannot be read, or the optimizer's package is not installed.
        CheckpointError: A model file cannot be read.
    """
    per_epoch = data.batches.windows_per_epoch()
    every_n_epochs, ratio = settings.save.every_n_epochs, settings.save_n_epoch_ratio
    if ratio is not None:
        every_n_epochs = max(1, settings.length.total_epochs(per_epoch) // ratio)
    metadata = run_metadata(settings, seed, data.survey, data.batches)
    # Written once to nowhere: what no header can hold costs no training.
    serialized({}, metadata, settings.save.final_path)
    return replace(settings.save, every_n_epochs=every_n_epochs, metadata=metadata)


def rehearse_saves(save: SaveConfig) -> None:
    """Make a run's folder, and find out whether it can hold files of the names that they will have.

    Raises:
        OutputError: It cannot, or no program could read them.
    """
    require_readable_name(save.final_path, "give another output_dir or output_name")
    rehearse(save.final_path)
    rehearse(save.folder / f"{save.name}{LONGEST_ENDING}")


def state_config(settings: TrainSettings, trackers: TrackerConfig | None) -> StateConfig:
    """Return when states are saved.

    Args:
        settings: Of the run; its save is from `save_config`.
        trackers: Of the run; one that is resumed from its state goes on with their log.
    """
    save, states = settings.save, settings.states
    return StateConfig(
        folder=save.folder,
        name=save.name,
        every_n_steps=save.every_n_steps if states.with_saves else None,
        every_n_epochs=save.every_n_epochs if states.with_saves else None,
        at_end=states.at_end,
        keep_steps=states.keep_steps,
        keep_epochs=states.keep_epochs,
        every_minutes=states.every_minutes,
        log_folder=trackers.folder if trackers else None,
    )


def prepare_previews(settings: TrainSettings, training: Training) -> Previews | None:
    """Return the hook that draws previews; the VAE is loaded when the first one is drawn.

    Raises:
        CacheError: A prompt's text is not cached.
    """
    previews, save = settings.previews, settings.save
    if previews is None:
        return None
    device = training.accelerator.device
    vae = LazyVae(previews.vae, device)
    config = PreviewConfig(
        folder=save.folder / "sample",
        name=save.name,
        model=base_name(settings.model.transformer, settings.model.llm_adapter),
        resumed=settings.states.resume is not None,
        at_first=previews.at_first,
        every_n_steps=previews.every_n_steps,
        every_n_epochs=previews.every_n_epochs,
    )
    return Previews(
        Painter(training.transformer, vae, device, settings.model.dtype),
        encoded_prompts(previews.prompts, training.batches.cache),
        config,
        finished=vae.release,
    )
