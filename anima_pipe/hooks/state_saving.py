"""Saves a run's state: when it is due, where the run stops, and where it breaks off."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import torch

from anima_pipe.errors import OutputError, PipeError
from anima_pipe.folders import published_folder, remove_folder
from anima_pipe.hooks.saving import STEP, remove_old
from anima_pipe.hooks.train_state import (
    DESCRIPTION,
    FORMAT_VERSION,
    OPTIMIZER_FILE,
    SUFFIX,
    RunParts,
    StateConfig,
    is_by_time,
    state_name,
)
from anima_pipe.records import Moment
from anima_pipe.runtime import say, warn
from anima_pipe.weights.writing import refuse_not_finite, stream_tensors


class StateSaver:
    """The hook that saves the state when it is due, and whenever a run stops or breaks off.

    Args:
        parts: What is saved.
        config: Where, how and when.
    """

    # The state is that of training, not what a schedule-free optimizer would show.
    reads_weights = False

    def __init__(self, parts: RunParts, config: StateConfig) -> None:
        self.parts = parts
        self.config = config
        self.last: Path | None = None
        """The state saved last."""
        self.saved_step: int | None = None
        """Of which step it is."""
        self._saved_at = time.monotonic()

    def due(self, moment: Moment) -> bool:
        """Tell whether a state is due."""
        if not moment.after_step:
            return False
        if moment.is_last:
            return self.config.at_end or moment.stopping
        return moment.stopping or self._by_count(moment) or self._time_is_up()

    def at(self, moment: Moment) -> None:
        """Save the state, and remove those that are too old to be kept."""
        folder = self.config.folder / state_name(self.config, moment)
        lasts = moment.is_last or moment.stopping or self._by_count(moment)
        save_state(folder, self.parts, moment, self.config.log_folder, by_time=not lasts)
        self.last, self.saved_step = folder, moment.step
        self._saved_at = time.monotonic()
        self._remove_earlier_by_time(moment)
        say(f"state saved: continue with --resume {folder}")
        remove_old(self.config, SUFFIX, moment)

    def rescue(self, moment: Moment) -> None:
        """Save the state of the last step if there is none; warn where it cannot be saved."""
        if not moment.after_step or self.saved_step == moment.step:
            return
        try:
            self.at(replace(moment, stopping=True))
        except Exception as error:  # noqa: BLE001 - the error that ended the run is to be told
            reason = error.problem if isinstance(error, PipeError) else error
            warn(f"the state could not be saved either: {reason}")

    def _remove_earlier_by_time(self, moment: Moment) -> None:
        """Remove the states that time alone asked for, those from before a resumption too."""
        name = re.compile(re.escape(self.config.name) + STEP + SUFFIX)
        for path in self.config.folder.iterdir():
            found = name.fullmatch(path.name)
            if found and int(found[1]) < moment.step and is_by_time(path):
                with suppress(OutputError):  # it is in nobody's way
                    remove_folder(path)

    def _by_count(self, moment: Moment) -> bool:
        return moment.falls_on(self.config.every_n_steps, self.config.every_n_epochs)

    def _time_is_up(self) -> bool:
        minutes = self.config.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes


def save_state(
    folder: Path,
    parts: RunParts,
    moment: Moment,
    log_folder: Path | None = None,
    *,
    by_time: bool = False,
) -> None:
    """Write a state folder; it is whole under its name, or not there.

    Args:
        folder: Its name.
        parts: What is saved.
        moment: Where the run stands.
        log_folder: Where its log is.
        by_time: Whether a later one takes its place.

    Raises:
        CheckpointError: A number in a tensor is not finite.
        OutputError: It cannot be written.
    """
    with published_folder(folder) as unfinished:
        file = parts.trained.state_file
        stream_tensors(unfinished / file, parts.trained.state_dict(), folder / file)
        states = {name: part.state_dict() for name, part in parts.stateful.items()}
        refuse_not_finite(dict(_tensors_in(states)), folder / OPTIMIZER_FILE)
        _save_with_torch(states, unfinished / OPTIMIZER_FILE)
        description = {
            "format_version": FORMAT_VERSION,
            "current_step": moment.step,
            "current_epoch": moment.epoch,
            "made_with": dict(parts.made_with),
            "log_folder": str(log_folder.absolute()) if log_folder else None,
            "by_time": by_time,
        }
        (unfinished / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")


def _save_with_torch(states: object, path: Path) -> None:
    """Write a file of torch.save's, tensor by tensor.

    Raises:
        OSError: The disk's own error, of which torch.save would make one that names no disk.
    """
    with path.open("wb") as file:
        target = _Sink(file)
        # All that it asks of a file is these two methods.
        torch.save(states, cast("BinaryIO", target))
        if target.error is not None:
            raise target.error


class _Sink:
    """A file that keeps the first error of its disk, and takes no more after it."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        """Write some bytes, or pass over them; return how many there were."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Leave it to closing the file."""


def _tensors_in(states: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors among nested states, each by the names that lead to it, dots between."""
    if isinstance(states, torch.Tensor):
        yield name, states
    elif isinstance(states, Mapping):
        for key, inner in states.items():
            yield from _tensors_in(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(states, list | tuple):
        for number, inner in enumerate(states):
            yield from _tensors_in(inner, f"{name}.{number}")
