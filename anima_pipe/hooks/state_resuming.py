"""Puts a saved state into a run, if it is one of such a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.hooks.train_state import (
    LENGTH,
    OPTIMIZER_FILE,
    RunParts,
    read_description,
    state_made_with,
)
from anima_pipe.trained import Trained

ALWAYS_THERE: Final = ("optimizer", "schedule")
"""Parts that every run has."""


def differences(folder: Path, parts: RunParts) -> list[str]:
    """Return the names in `made_with` in which a run differs from that of a state.

    Raises:
        CheckpointError: The folder is not a state.
    """
    saved, now = state_made_with(folder), parts.made_with
    return [name for name in {**saved, **now} if saved.get(name) != now.get(name)]


def resume(
    folder: Path, parts: RunParts, allowed: Collection[str] = (), afresh: Collection[str] = ()
) -> int:
    """Put a saved state into the parts of a run.

    An average, a scaler or a count that the state does not have starts afresh.

    Args:
        folder: The state folder.
        parts: Of the run, freshly made.
        allowed: Names in `made_with` that may differ.
        afresh: Names of parts that are left as they were made.

    Returns:
        The optimizer steps done.

    Raises:
        CheckpointError: The folder is not a state, or not whole.
        ConfigError: The state was made with something else.
    """
    description = read_description(folder)
    _refuse_difference(folder, parts, allowed)
    try:
        parts.trained.load_state_dict(load_file(folder / parts.trained.state_file))
        weights = parts.trained.state_dict()
        # Where it was saved says nothing of where the parts are; each takes its own to its device.
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        states = {"ema": weights, **saved}
        for name, part in parts.stateful.items():
            if name not in afresh and (name in states or name in ALWAYS_THERE):
                part.load_state_dict(states[name])
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"state {folder} cannot be used: {error}", "use another state, or start afresh"
        ) from error
    return description["current_step"]


def _refuse_difference(folder: Path, parts: RunParts, allowed: Collection[str]) -> None:
    all_differing = differences(folder, parts)
    differing = [name for name in all_differing if name not in allowed]
    if differing:
        saved, now = state_made_with(folder), parts.made_with
        listed = "; ".join(f"{n}: {saved.get(n)} then, {now.get(n)} now" for n in differing)
        raise ConfigError(
            f"state {folder} was made with something else: {listed}",
            _way_on(folder, parts.trained, all_differing),
        )


def _way_on(folder: Path, trained: Trained, needed: Collection[str]) -> str:
    """Return the remedy where facts differ; `needed` are those that would have to be allowed."""
    if not _holds_tensors_of(folder / trained.state_file, trained):
        return f"put the old values back: the state has other tensors than this {trained.called}"
    allow = f"allow it: --resume_allow {' '.join(needed)}"
    description = read_description(folder)
    is_finished = description["made_with"].get(LENGTH) == str(description["current_step"])
    return allow if is_finished else f"put the old values back, or {allow}"


def _holds_tensors_of(path: Path, trained: Trained) -> bool:
    """Tell whether a file has the tensors of what trains, by name and shape."""
    if not path.exists():
        return False
    own = {name: [*tensor.shape] for name, tensor in trained.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return own == {name: file.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError):
        # What is wrong with it is said when it is read.
        return True
