"""A saved state: all that a run needs to go on from a step as if it had never stopped, to the bit.

To the bit only with deterministic kernels: a processor's are; for a GPU see `deterministic`.

The order of samples and every random number are functions of the seed and the step, so no
generator's state is part of it: what trains, its average, the optimizer, the schedule, fp16's
scaler, the smoothed losses and the step are all there is. A state folder holds

    adapter.safetensors   the trained tensors, as they train, by their names in an adapter file;
                          model.safetensors where the model itself trains, by its names
    optimizer.pt          torch.save of the states of optimizer, schedule, scaler and so on
    train_state.json      the step, the epoch, and what the state was made with

`state_saving` writes such folders, `state_resuming` puts them back into a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from safetensors import safe_open

from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.folders import repair_folder, repair_folders
from anima_pipe.hooks.saving import EPOCH, STEP
from anima_pipe.plain_text import parsed_json
from anima_pipe.records import Moment
from anima_pipe.trained import Trained

FORMAT_VERSION: Final = 1
OPTIMIZER_FILE: Final = "optimizer.pt"
DESCRIPTION: Final = "train_state.json"
SUFFIX: Final = "-state"
KOHYAS_OPTIMIZER: Final = "optimizer.bin"
"""A file of the states that accelerate writes for Kohya's scripts."""
LENGTH: Final = "max_train_steps"
"""What a run's length is called in `made_with`."""
OF_A_MODEL: Final = ("pretrained_model_name_or_path", "model")
"""The option that takes a finished model, and what it is called."""
ANY_LENGTH: Final = "any"
"""What stands there where nothing follows the length."""


class Stateful(Protocol):
    """What has a state to be saved: an optimizer, a schedule, a gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take the state back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a state is saved from and restored to."""

    trained: Trained
    stateful: Mapping[str, Stateful]
    """By name: optimizer, schedule and, where the run has them, scaler, ema and others."""
    made_with: Mapping[str, str]
    """Everything that changes the mathematics of the run, by the names that users give it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Where, how and when states are saved."""

    folder: Path
    name: str
    """First part of the names of state folders."""
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    at_end: bool = False
    keep_steps: int | None = None
    """Of the states saved by steps, those of the last so many steps are kept; None: all."""
    keep_epochs: int | None = None
    """Of the states saved by epochs, so many are kept; None: all."""
    every_minutes: float | None = None
    """Save at least so often; of the states saved for this alone, only the newest is kept."""
    log_folder: Path | None = None
    """Where a resumed run finds its log again; None: there is none."""


def state_name(config: StateConfig, moment: Moment) -> str:
    """Return the name of a state's folder, as Kohya names it."""
    if moment.is_last:
        return f"{config.name}{SUFFIX}"
    if moment.falls_on(None, config.every_n_epochs) and not moment.stopping:
        return f"{config.name}-{moment.epoch:06d}{SUFFIX}"
    return f"{config.name}-step{moment.step:08d}{SUFFIX}"


def is_of(name: str, subject: str) -> bool:
    """Tell whether a name in `made_with` is of a subject: "objective" stands for its parts too."""
    return name == subject or name.startswith(f"{subject}.")


def state_made_with(folder: Path) -> Mapping[str, str]:
    """Return everything that changes the mathematics of the run that a state is of, by name.

    Raises:
        CheckpointError: The folder is not a state.
    """
    return read_description(folder)["made_with"]


def state_seed(folder: Path) -> int:
    """Return the seed of the run that a state is of.

    Raises:
        CheckpointError: The folder is not a state.
    """
    return int(state_made_with(folder)["seed"])


def state_log(folder: Path) -> Path | None:
    """Return the log folder of the run that a state is of, if it is still there.

    Raises:
        CheckpointError: The folder is not a state.
    """
    named = read_description(folder).get("log_folder")
    return Path(named) if named and Path(named).is_dir() else None


def latest_state(folder: Path, name: str) -> Path:
    """Return the state of a run that is furthest.

    Raises:
        ConfigError: There is none; or the run finished after it and saved no state at its end, so
            that the user has to say what to go on from.
    """
    repair_folders(folder)
    own = re.compile(rf"{re.escape(name)}({STEP}|{EPOCH})?{SUFFIX}")
    found = [path for path in folder.glob(f"*{SUFFIX}") if own.fullmatch(path.name)]
    found = [path for path in found if (path / DESCRIPTION).exists()]
    if not found:
        raise ConfigError(
            f"there is no state of {name} in {folder}", "leave out resume to start afresh"
        )
    latest = max(found, key=lambda path: read_description(path)["current_step"])
    _refuse_older_than_the_end(latest, folder / f"{name}.safetensors")
    return latest


def _refuse_older_than_the_end(state: Path, saved: Path) -> None:
    """Check that no finished save is both newer and further than a state.

    One that is older is of another run, from before the state's.
    """
    step: int = read_description(state)["current_step"]
    if not saved.exists() or saved.stat().st_mtime < (state / DESCRIPTION).stat().st_mtime:
        return
    with safe_open(saved, framework="pt") as file:
        header = file.metadata() or {}
    end = header.get("ss_steps", "")
    what = ("network_weights", "adapter") if "ss_network_module" in header else OF_A_MODEL
    if end.isdecimal() and int(end) > step:
        raise ConfigError(
            f"the latest state, {state}, is of step {step}, but {saved.name} is of step {end}: "
            "the run saved no state at its end",
            f"--resume {state} trains on from step {step}; --{what[0]} {saved} starts anew "
            f"from the finished {what[1]}",
        )


def is_by_time(folder: Path) -> bool:
    """Tell whether a state was saved for its time alone; what is no state was not."""
    try:
        return bool(read_description(folder).get("by_time"))
    except CheckpointError:
        return False


def read_description(folder: Path) -> dict[str, Any]:
    """Return what a state's folder says of it.

    Raises:
        CheckpointError: The folder is not a state.
    """
    repair_folder(folder)
    _refuse_kohyas(folder)
    if folder.suffix == ".safetensors":
        raise CheckpointError(
            f"{folder} is an adapter, not a saved state",
            f"give it as network_weights, or a folder that ends in {SUFFIX} as resume",
        )
    try:
        description = parsed_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{folder} is not a saved state: {DESCRIPTION}: {reason}",
            f"give a folder that ends in {SUFFIX} and holds {DESCRIPTION}",
        ) from error
    if description.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} is not a state of this program, or of a newer one",
            "start afresh; network_weights takes up a saved adapter's weights",
        )
    return description


def _refuse_kohyas(folder: Path) -> None:
    """Check that a folder is not what accelerate saves for Kohya's scripts."""
    if (folder / KOHYAS_OPTIMIZER).exists():
        adapter = folder.with_name(f"{folder.name.removesuffix(SUFFIX)}.safetensors")
        named = f": {adapter}" if adapter.exists() else ""
        raise CheckpointError(
            f"{folder} is a state of Kohya's scripts, from which only they can go on",
            f"give its .safetensors as network_weights{named}",
        )
