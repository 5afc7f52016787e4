"""Options of logs and of what is watched."""

from pathlib import Path
from typing import Final

from anima_pipe.kohya.rows import (
    TRAINING,
    Option,
    flag,
    group,
    integer,
    no_op,
    number,
    path,
    text,
)

LOGS: Final[tuple[Option, ...]] = group(
    "Logs and records",
    TRAINING,
    path(
        "logging_dir",
        "Folder of the logs.",
        default=Path("logs"),
        default_note="The seed's.",
        test="test_options_of_training.py::test_logs_go_where_logging_dir_and_log_prefix_say",
    ),
    text(
        "log_with",
        "Where numbers and pictures go, beside metrics.jsonl in the log folder.",
        default="tensorboard",
        default_note="The seed's; Kohya logs nothing unless told to.",
        choices=("tensorboard", "wandb", "all", "none"),
        test="test_run_logs.py::test_log_with_names_the_trackers",
    ),
    text(
        "log_prefix",
        "First part of the log folder's name; not set: output_name.",
        test="test_options_of_training.py::test_logs_go_where_logging_dir_and_log_prefix_say",
    ),
    text(
        "log_tracker_name",
        "wandb's project, and a folder within the run's for TensorBoard.",
        test="test_run_logs.py::test_log_tracker_name_and_wandb_run_name_are_the_projects_and_runs",
    ),
    path(
        "log_tracker_config",
        "TOML of further arguments: [wandb] for wandb.init, [tensorboard] for its SummaryWriter.",
        beside_file=True,
        test="test_run_logs.py::test_log_tracker_config_holds_arguments_of_the_trackers",
    ),
    text(
        "wandb_run_name",
        "Name of the run in wandb; not set: the log folder's.",
        test="test_run_logs.py::test_log_tracker_name_and_wandb_run_name_are_the_projects_and_runs",
    ),
    text(
        "wandb_api_key",
        "Key of wandb; not set: the one that wandb login stored. Write it into a file: shells "
        "remember what was typed.",
        test="test_run_logs.py::test_wandb_api_key_is_handed_to_wandb_and_to_no_log",
    ),
    *no_op(
        "the resolved options are part of every log",
        flag("log_config", "Log the options."),
    ),
    flag(
        "auto_start_tensorboard",
        "Start TensorBoard beside the training; it stays when the training ends.",
        default_note="The seed's later version says true.",
        test="test_run_logs.py::test_auto_start_tensorboard_answers_at_the_next_free_port",
    ),
    text(
        "tensorboard_host",
        "Address that it answers at.",
        default="127.0.0.1",
        test="test_run_logs.py::test_auto_start_tensorboard_answers_at_the_next_free_port",
    ),
    integer(
        "tensorboard_port",
        "Its port, or one of the next 20 where that is taken.",
        default=6006,
        minimum=1,
        maximum=65000,
        test="test_run_logs.py::test_auto_start_tensorboard_answers_at_the_next_free_port",
    ),
    path(
        "tensorboard_logdir",
        "Folder that it shows; not set: logging_dir.",
        test="test_run_logs.py::test_auto_start_tensorboard_answers_at_the_next_free_port",
    ),
    flag(
        "anima_monitor_memory",
        "Log memory, and warn where it runs short.",
        default=True,
        test="test_run_logs.py::test_anima_monitor_memory_says_whether_memory_is_logged",
    ),
    text(
        "anima_monitor_alert_policy",
        "What memory running short, or a loss running away, does: warn, or raise to end the run.",
        default="warn",
        choices=("warn", "raise"),
        test="test_alarms.py::test_anima_monitor_alert_policy_ends_the_run_or_warns",
    ),
    number(
        "anima_monitor_memory_warn_ratio",
        "Share of all memory in use that is warned of, 0 to 1.",
        default=0.95,
        minimum=0,
        maximum=1,
        test="test_alarms.py::test_anima_monitor_memory_warn_ratio_is_the_share_that_is_told",
    ),
    number(
        "anima_monitor_loss_spike_ratio",
        "Warn where the median loss of 5 steps is so many times that of the 100 before; 0: never.",
        default=3.0,
        default_note="The seed compares single steps.",
        minimum=0,
        zero_is_none=True,
        test="test_alarms.py::test_anima_monitor_loss_spike_ratio_is_the_rise_that_is_told",
    ),
    *no_op(
        "a run says only what its user needs: its plan, its progress, and what is wrong; the shell "
        "writes it to a file, `anima-pipe train ... > run.txt 2>&1`",
        text("console_log_level", "Least important messages shown."),
        path("console_log_file", "File for the messages."),
    ),
    *no_op(
        "messages are plain lines anyway",
        flag("console_log_simple", "Plain messages."),
    ),
)
