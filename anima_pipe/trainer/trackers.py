"""TensorBoard and Weights & Biases, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT: Final = "anima-pipe"
"""Of runs in wandb that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerConfig:
    """Which trackers a run has, and what they are told of it."""

    folder: Path
    """Of this run alone."""
    kinds: tuple[str, ...] = ("tensorboard",)
    """"tensorboard", "wandb"."""
    project: str | None = None
    """wandb's project, or a folder within the run's for TensorBoard."""
    run_name: str | None = None
    """wandb's; None: the folder's name."""
    api_key: str | None = field(default=None, repr=False)
    """wandb's; None: the one that `wandb login` stored."""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Further arguments of `wandb.init` and of TensorBoard's `SummaryWriter`, by kind."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """The run's resolved options."""


class Trackers:
    """What accelerate's trackers are told.

    Args:
        accelerator: Of the run; its trackers end with `ending_training`.
        config: Which, and where.
        steps_done: Where the run begins: what a log in the same folder says of later steps is no
            longer shown.
    """

    def __init__(self, accelerator: Accelerator, config: TrackerConfig, steps_done: int) -> None:
        self._accelerator = accelerator
        for kind in config.kinds:
            accelerator.log_with.append(MAKERS[kind](config, steps_done))
        accelerator.init_trackers(config.project or PROJECT)
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                text = "  \n".join(f"{name} = {value}" for name, value in config.settings.items())
                tracker.tracker.add_text("settings", text)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers by name."""
        self._accelerator.log(dict(numbers), step=step)

    def pictures(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Log pictures by name."""
        for tracker in self._accelerator.trackers:
            for name, picture in pictures.items():
                if tracker.name == "tensorboard":
                    stack = np.asarray(picture.convert("RGB"))[np.newaxis]
                    tracker.log_images({name: stack}, step=step, dataformats="NHWC")
                else:
                    tracker.log_images({name: [picture]}, step=step)

    def close(self) -> None:
        """Leave it to `ending_training`."""


@contextmanager
def ending_training(accelerator: Accelerator) -> Generator[None]:
    """Let trackers write what they hold back, and leave the other processes, whatever happens."""
    try:
        yield
    except BaseException:
        # What ended the run is to be told of, not what may go wrong behind it.
        with suppress(Exception):
            accelerator.end_training()
        raise
    accelerator.end_training()


def _tensorboard(config: TrackerConfig, steps_done: int) -> GeneralTracker:
    arguments = dict(config.arguments.get("tensorboard", {}))
    if steps_done:
        arguments.setdefault("purge_step", steps_done + 1)
    return TensorBoardTracker(config.project or "", str(config.folder), **arguments)


def _wandb(config: TrackerConfig, _steps_done: int) -> GeneralTracker:
    if config.api_key:
        os.environ["WANDB_API_KEY"] = config.api_key
    config.folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "name": config.run_name or config.folder.name,
        "dir": str(config.folder),
        "config": dict(config.settings),
    }
    return WandBTracker(config.project or PROJECT, **{**given, **config.arguments.get("wandb", {})})


MAKERS: Final = {"tensorboard": _tensorboard, "wandb": _wandb}
