"""From resolved options to what a run writes: adapters, states, previews, logs."""

from __future__ import annotations

from pathlib import Path

from anima_pipe.errors import ConfigError
from anima_pipe.hooks.saving import SaveConfig
from anima_pipe.hooks.train_state import latest_state, state_made_with
from anima_pipe.kohya.caching import preview_prompts
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.resume_names import allowed_facts
from anima_pipe.optimizing.checks import refuse_two_averages
from anima_pipe.optimizing.optimizers import find_optimizer
from anima_pipe.runs.settings.training import PreviewSettings, StateSettings
from anima_pipe.runtime import torch_dtype


def state_settings(options: Resolved) -> StateSettings:
    """Return when states are saved, and the one that the run goes on from.

    Raises:
        ConfigError: The latest state is asked for, and there is none.
        CheckpointError: What the run is to go on from is no state.
    """
    saves: bool = options.value("save_state")
    saving = save_config(options)
    resume: str | None = options.value("resume")
    latest = resume == "latest"
    found = latest_state(run_folder(options), output_name(options)) if latest else resume
    facts = [*state_made_with(Path(found)), *_of_this_run(options)] if found else []
    return StateSettings(
        with_saves=saves,
        at_end=saves or options.value("save_state_on_train_end"),
        keep_steps=options.value("save_last_n_steps_state", saving.keep_steps),
        keep_epochs=options.value("save_last_n_epochs_state", saving.keep_epochs),
        every_minutes=options.value("save_state_every_minutes"),
        resume=Path(found) if found else None,
        resume_allow=allowed_facts(options.value("resume_allow") or (), facts) if found else (),
    )


def _of_this_run(options: Resolved) -> list[str]:
    """Return the facts that a run may have and a state lack: the optimizer's package."""
    try:
        return [find_optimizer(options.value("optimizer_type")).package]
    except ConfigError:
        return []  # which is told where the optimizer is checked


def output_name(options: Resolved) -> str:
    """Return the first part of the names of a run's files; Kohya's for a run without is "last"."""
    return _output(options).name


def run_folder(options: Resolved) -> Path:
    """Return the folder of a run's files: output_dir, or one in it that output_name leads to.

    Where no output_dir is set yet it is the usual one, for those who only look.
    """
    return _output(options).parent


def _output(options: Resolved) -> Path:
    """Return the path that output_dir and output_name make up, as Kohya joins them."""
    folder: Path = options.value("output_dir", Path("output"))
    return folder / (options.value("output_name") or "last")


def save_config(options: Resolved) -> SaveConfig:
    """Return when adapters are saved, where, and in which style."""
    precision: str | None = options.value("save_precision")
    return SaveConfig(
        folder=run_folder(options),
        name=output_name(options),
        every_n_steps=options.value("save_every_n_steps"),
        every_n_epochs=options.value("save_every_n_epochs"),
        dtype=torch_dtype(precision) if precision else None,
        style=options.value("save_format"),
        keep_steps=options.value("save_last_n_steps"),
        keep_epochs=options.value("save_last_n_epochs"),
        tells_progress=not options.value("no_metadata"),
    )


def ema_decay(options: Resolved) -> float | None:
    """Return the decay of the adapter's average; None: no average.

    Raises:
        ConfigError: The optimizer averages by itself.
    """
    decay: float | None = options.value("ema_decay")
    refuse_two_averages(decay, options.value("optimizer_type"))
    return decay


def preview_settings(options: Resolved) -> PreviewSettings | None:
    """Return what is drawn and when; None: nothing.

    Raises:
        ConfigError: A prompt cannot be read.
    """
    prompts = preview_prompts(options)
    if not prompts:
        return None
    return PreviewSettings(
        prompts=tuple(prompts),
        vae=options.value("vae"),
        at_first=options.value("sample_at_first"),
        every_n_steps=options.value("sample_every_n_steps"),
        every_n_epochs=options.value("sample_every_n_epochs"),
    )
