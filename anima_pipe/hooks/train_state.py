"""Everything a run needs to go on from a step as if it had never stopped, to the bit.

That takes kernels that give the same bits each time, as a processor's do: see `deterministic`.

The order of samples and every random number are functions of the seed and the step, so no
generator's state is part of it: the adapter, its average, the optimizer, the schedule, fp16's
scaler, the smoothed losses and the step are all there is. A state folder holds

    adapter.safetensors   the trained tensors, as they train, by their names in an adapter file
    optimizer.pt          torch.save of the states of optimizer, schedule, scaler and so on
    train_state.json      the step, the epoch, and what the state was made with
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from anima_pipe.errors import CheckpointError, ConfigError, OutputError
from anima_pipe.folders import published_folder, remove_folder, repair_folder, repair_folders
from anima_pipe.hooks.saving import EPOCH, STEP, remove_old
from anima_pipe.records import Moment
from anima_pipe.runtime import say
from anima_pipe.weights.writing import refuse_not_finite, serialized

if TYPE_CHECKING:
    from anima_pipe.adapters import Adapter

FORMAT_VERSION: Final = 1
ADAPTER_FILE: Final = "adapter.safetensors"
OPTIMIZER_FILE: Final = "optimizer.pt"
DESCRIPTION: Final = "train_state.json"
SUFFIX: Final = "-state"
KOHYAS_OPTIMIZER: Final = "optimizer.bin"
"""A file of the states that accelerate writes for Kohya's scripts."""
ALWAYS_THERE: Final = ("optimizer", "schedule")
"""Parts that every run has."""
LENGTH: Final = "max_train_steps"
"""What a run's length is called in `made_with`."""
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
    """What a state is taken from and given back to."""

    adapter: Adapter
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
    """Also so often; of the states saved for that alone, the newest is kept."""
    log_folder: Path | None = None
    """Where a resumed run finds its log again; None: there is none."""


class StateSaver:
    """The hook that saves the state when it is due, and whenever a run is asked to stop."""

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

    def _remove_earlier_by_time(self, moment: Moment) -> None:
        """Remove the states that time alone asked for, those from before a resumption too."""
        name = re.compile(re.escape(self.config.name) + STEP + SUFFIX)
        for path in self.config.folder.iterdir():
            found = name.fullmatch(path.name)
            if found and int(found[1]) < moment.step and _is_by_time(path):
                with suppress(OutputError):  # it is in nobody's way
                    remove_folder(path)

    def _by_count(self, moment: Moment) -> bool:
        return moment.falls_on(self.config.every_n_steps, self.config.every_n_epochs)

    def _time_is_up(self) -> bool:
        minutes = self.config.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes


def state_name(config: StateConfig, moment: Moment) -> str:
    """Return the name of a state's folder, as Kohya names it."""
    if moment.is_last:
        return f"{config.name}{SUFFIX}"
    if moment.falls_on(None, config.every_n_epochs) and not moment.stopping:
        return f"{config.name}-{moment.epoch:06d}{SUFFIX}"
    return f"{config.name}-step{moment.step:08d}{SUFFIX}"


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
        tensors = {n: t.cpu().contiguous() for n, t in parts.adapter.state_dict().items()}
        (unfinished / ADAPTER_FILE).write_bytes(serialized(tensors, None, folder / ADAPTER_FILE))
        states = {name: part.state_dict() for name, part in parts.stateful.items()}
        refuse_not_finite(dict(_tensors_in(states)), folder / OPTIMIZER_FILE)
        # By way of memory: what a full disk does to torch.save names neither disk nor file.
        content = BytesIO()
        torch.save(states, content)
        (unfinished / OPTIMIZER_FILE).write_bytes(content.getbuffer())
        description = {
            "format_version": FORMAT_VERSION,
            "current_step": moment.step,
            "current_epoch": moment.epoch,
            "made_with": dict(parts.made_with),
            "log_folder": str(log_folder.absolute()) if log_folder else None,
            "by_time": by_time,
        }
        (unfinished / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")


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


def differences(folder: Path, parts: RunParts) -> list[str]:
    """Return the names in `made_with` in which a run differs from that of a state.

    Raises:
        CheckpointError: The folder is not a state.
    """
    saved, now = state_made_with(folder), parts.made_with
    return [name for name in {**saved, **now} if saved.get(name) != now.get(name)]


def is_of(name: str, subject: str) -> bool:
    """Tell whether a name in `made_with` is of a subject: "objective" stands for its parts too."""
    return name == subject or name.startswith(f"{subject}.")


def resume(
    folder: Path, parts: RunParts, allowed: Collection[str] = (), afresh: Collection[str] = ()
) -> int:
    """Put a saved state into the parts of a run.

    An average, a scaler or a count that the state's run did not have begins here.

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
    description = _read_description(folder)
    _refuse_difference(folder, parts, allowed)
    try:
        parts.adapter.load_state_dict(load_file(folder / ADAPTER_FILE))
        weights = parts.adapter.state_dict()
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


def state_made_with(folder: Path) -> Mapping[str, str]:
    """Return everything that changes the mathematics of the run that a state is of, by name.

    Raises:
        CheckpointError: The folder is not a state.
    """
    return _read_description(folder)["made_with"]


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
    named = _read_description(folder).get("log_folder")
    return Path(named) if named and Path(named).is_dir() else None


def latest_state(folder: Path, name: str) -> Path:
    """Return the state of a run that is furthest.

    Raises:
        ConfigError: There is none, or the run went on from it to its end and saved no state there:
            what is wanted then is for the user to say.
    """
    repair_folders(folder)
    own = re.compile(rf"{re.escape(name)}({STEP}|{EPOCH})?{SUFFIX}")
    found = [path for path in folder.glob(f"*{SUFFIX}") if own.fullmatch(path.name)]
    found = [path for path in found if (path / DESCRIPTION).exists()]
    if not found:
        raise ConfigError(
            f"there is no state of {name} in {folder}", "leave out resume to start afresh"
        )
    latest = max(found, key=lambda path: _read_description(path)["current_step"])
    _refuse_older_than_the_end(latest, folder / f"{name}.safetensors")
    return latest


def _refuse_older_than_the_end(state: Path, adapter: Path) -> None:
    """Check that no finished adapter is both newer and further than a state.

    One that is older is of another run, from before the state's.
    """
    step: int = _read_description(state)["current_step"]
    if not adapter.exists() or adapter.stat().st_mtime < (state / DESCRIPTION).stat().st_mtime:
        return
    with safe_open(adapter, framework="pt") as file:
        end = (file.metadata() or {}).get("ss_steps", "")
    if end.isdecimal() and int(end) > step:
        raise ConfigError(
            f"the latest state, {state}, is of step {step}, but {adapter.name} is of step {end}: "
            "the run saved no state at its end",
            f"--resume {state} trains on from step {step}; --network_weights {adapter} starts anew "
            "from the finished adapter",
        )


def _is_by_time(folder: Path) -> bool:
    """Tell whether a state was saved for its time alone; what is no state was not."""
    try:
        return bool(_read_description(folder).get("by_time"))
    except CheckpointError:
        return False


def _read_description(folder: Path) -> dict[str, Any]:
    repair_folder(folder)
    _refuse_kohyas(folder)
    if folder.suffix == ".safetensors":
        raise CheckpointError(
            f"{folder} is an adapter, not a saved state",
            f"give it as network_weights, or a folder that ends in {SUFFIX} as resume",
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
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


def _refuse_difference(folder: Path, parts: RunParts, allowed: Collection[str]) -> None:
    all_differing = differences(folder, parts)
    differing = [name for name in all_differing if name not in allowed]
    if differing:
        saved, now = state_made_with(folder), parts.made_with
        listed = "; ".join(f"{n}: {saved.get(n)} then, {now.get(n)} now" for n in differing)
        raise ConfigError(
            f"state {folder} was made with something else: {listed}",
            _way_on(folder, parts.adapter, all_differing),
        )


def _way_on(folder: Path, adapter: Adapter, needed: Collection[str]) -> str:
    """Return what makes a run go on from a state of another one; `needed` is to be allowed."""
    if not _holds_tensors_of(folder / ADAPTER_FILE, adapter):
        return "put the old values back: the adapter in the state has other tensors than this one"
    allow = f"allow it: --resume_allow {' '.join(needed)}"
    description = _read_description(folder)
    is_finished = description["made_with"].get(LENGTH) == str(description["current_step"])
    return allow if is_finished else f"put the old values back, or {allow}"


def _holds_tensors_of(path: Path, adapter: Adapter) -> bool:
    """Tell whether a file has the tensors of an adapter, by name and shape."""
    own = {name: [*tensor.shape] for name, tensor in adapter.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return own == {name: file.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError):
        # What is wrong with it is said when it is read.
        return True
