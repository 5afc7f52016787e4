"""Where a run logs, and what its trackers are told of it."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from anima_pipe.errors import ConfigError
from anima_pipe.hooks.train_state import state_log
from anima_pipe.plain_text import in_utf8
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.trainer import TrackerConfig


def tracker_config(settings: TrainSettings) -> TrackerConfig | None:
    """Return the run's trackers, in a folder of its own; None: it keeps no log.

    Raises:
        CheckpointError: What the run is to go on from is no state.
        ConfigError: wandb is asked for and not installed, or the folder's path is not UTF-8.
    """
    logs = settings.logs
    if not logs.kinds:
        return None
    if "wandb" in logs.kinds and find_spec("wandb") is None:
        raise ConfigError(
            "the log is to be wandb's, which is not installed",
            "run `pip install wandb` in this environment, or log to tensorboard alone",
        )
    folder = _log_folder(settings)
    if in_utf8(str(folder)) != str(folder):
        raise ConfigError(
            f"the log {folder} is for {' and '.join(logs.kinds)}, which write to no path that is "
            "not UTF-8",
            "give another logging_dir, log_prefix or output_name, or set log_with to none",
        )
    return TrackerConfig(
        folder=folder,
        kinds=logs.kinds,
        project=logs.project,
        run_name=logs.run_name,
        api_key=logs.api_key,
        arguments=logs.arguments,
        settings=logs.told,
    )


def _log_folder(settings: TrainSettings) -> Path:
    """Return the run's own folder: that of the run it goes on from, or a new one."""
    logs, save, resumed = settings.logs.folder, settings.save, settings.states.resume
    name = settings.logs.prefix or save.name
    before = state_log(resumed) if resumed else None
    # Only the same run goes on with its log; one that branches off begins its own.
    same_run = resumed and resumed.absolute().parent == save.folder.absolute()
    if before and same_run and before.parent == logs.absolute() and before.name.startswith(name):
        return before
    # Kohya's prefixes bring their own separator.
    between = "" if name.endswith(("_", "-")) else "_"
    return logs / f"{name}{between}{time.strftime('%Y%m%d_%H%M%S')}"
