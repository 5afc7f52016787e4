"""From resolved options to what a run logs, shows and warns of."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from anima_pipe.errors import ConfigError
from anima_pipe.hooks.alarms import AlarmConfig
from anima_pipe.hooks.board import BoardConfig
from anima_pipe.kohya.config_file import read_toml
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.plain_text import on_one_line
from anima_pipe.runs.settings.training import LogSettings
from anima_pipe.secrecy import SECRET_OPTIONS, redacted

KINDS: Final = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "all": ("tensorboard", "wandb"),
    "none": (),
}
"""log_with, and the trackers that it means."""


def log_settings(options: Resolved) -> LogSettings:
    """Return what is logged, and where.

    Raises:
        ConfigError: wandb is asked for and not installed, or its settings cannot be read.
    """
    kinds = KINDS[options.value("log_with")]
    if "wandb" in kinds and find_spec("wandb") is None:
        raise ConfigError(
            f"log_with asks for wandb ({options.given('log_with')}), which is not installed",
            "run `pip install wandb` in this environment, or use log_with tensorboard",
        )
    watches_memory: bool = options.value("anima_monitor_memory")
    return LogSettings(
        kinds=kinds,
        folder=options.value("logging_dir"),
        prefix=options.value("log_prefix"),
        project=options.value("log_tracker_name"),
        run_name=options.value("wandb_run_name"),
        api_key=options.value("wandb_api_key"),
        arguments=_tracker_arguments(options),
        told=shown_options(options),
        board=_board(options) if "tensorboard" in kinds else None,
        memory=watches_memory,
        alarms=AlarmConfig(
            stops=options.value("anima_monitor_alert_policy") == "raise",
            loss_ratio=options.value("anima_monitor_loss_spike_ratio"),
            memory_share=options.value("anima_monitor_memory_warn_ratio")
            if watches_memory
            else None,
        ),
    )


def shown_options(options: Resolved) -> dict[str, str]:
    """Return every option and its value, for people to read; secrets are not told."""
    return {
        name: "(not told)"
        if name in SECRET_OPTIONS and options.value(name)
        else redacted(on_one_line(str(options.value(name))))
        for name in options.defaults
    }


def _tracker_arguments(options: Resolved) -> Mapping[str, Mapping[str, Any]]:
    """Read the file of further arguments: a table for each tracker, as Kohya's."""
    path: Path | None = options.value("log_tracker_config")
    if path is None:
        return {}
    file = read_toml(path)
    for kind, table in file.table.items():
        if kind not in ("tensorboard", "wandb") or not isinstance(table, dict):
            raise ConfigError(
                f"{file.place((kind,))}: {kind} is no table of a tracker",
                "write arguments of wandb.init under [wandb], and those of TensorBoard's "
                "SummaryWriter under [tensorboard]",
            )
    return file.table


def _board(options: Resolved) -> BoardConfig | None:
    if not options.value("auto_start_tensorboard"):
        return None
    return BoardConfig(
        folder=options.value("tensorboard_logdir") or options.value("logging_dir"),
        host=options.value("tensorboard_host"),
        port=options.value("tensorboard_port"),
    )
