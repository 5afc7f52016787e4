"""Writes what trains while it trains, under the names that Kohya gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import torch

from anima_pipe.adapters.styles import find_style
from anima_pipe.errors import ConfigError, check_number
from anima_pipe.folders import remove_folder
from anima_pipe.records import Moment
from anima_pipe.weights.writing import require_writable

Write: TypeAlias = Callable[[Path, Mapping[str, str]], object]
"""Writes what trains, as it is now, to a file whose header is to say so much more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """Where, how and when what trains is saved.

    Raises:
        ConfigError: The name is no part of a file's name, there is no such style, nothing is
            written in the dtype, or a number is too small.
    """

    folder: Path
    """It need not exist (output_dir)."""
    name: str
    """First part of the files' names (output_name)."""
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    dtype: torch.dtype | None = None
    """Of the tensors in the file; None: as they are trained."""
    style: str = "comfy"
    """Names of an adapter's tensors: comfy, diffusers or kohya."""
    keep_steps: int | None = None
    """Of the files saved by steps, those of the last so many steps are kept; None: all."""
    keep_epochs: int | None = None
    """Of the files saved by epochs, so many are kept; None: all."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    tells_progress: bool = True
    """Whether the metadata says the step and the epoch of the save."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ConfigError(
                f"output_name is {self.name!r}, which no file can be called",
                "give a name without folders",
            )
        find_style(self.style)
        require_writable(self.dtype)
        check_number("save_every_n_steps", self.every_n_steps, least=1)
        check_number("save_every_n_epochs", self.every_n_epochs, least=1)
        check_number("save_last_n_steps", self.keep_steps, least=0)
        check_number("save_last_n_epochs", self.keep_epochs, least=0)

    @property
    def of_average(self) -> SaveConfig:
        """The same of the average of what trains, whose files lie beside it."""
        return replace(self, name=f"{self.name}-ema")

    @property
    def final_path(self) -> Path:
        """The file that the run ends with."""
        return self.folder / f"{self.name}.safetensors"


STEP: Final = r"-step(\d{8})"
"""What follows the run's name in the name of a save by steps."""
EPOCH: Final = r"-(\d{6})"
"""The same in a save by epochs."""


class Saver:
    """The hook that saves what trains when it is due, and at the end.

    Args:
        write: Writes a file of it.
        config: Where and when.
        weights: Puts other weights in place while the file is written, such as an average.
    """

    reads_weights = True

    def __init__(
        self,
        write: Write,
        config: SaveConfig,
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.write = write
        self.config = config
        self.weights = weights

    def due(self, moment: Moment) -> bool:
        """Tell whether a file is due."""
        config = self.config
        return moment.is_last or moment.falls_on(config.every_n_steps, config.every_n_epochs)

    def at(self, moment: Moment) -> None:
        """Save under every name that is due."""
        for path in self.paths(moment):
            self._save(path, moment)
        remove_old(self.config, ".safetensors", moment)

    def paths(self, moment: Moment) -> list[Path]:
        """Return the names that are due."""
        config = self.config
        paths: list[Path] = []
        if moment.falls_on(config.every_n_steps, None):
            paths.append(config.folder / f"{config.name}-step{moment.step:08d}.safetensors")
        if moment.is_last:
            paths.append(config.final_path)
        elif moment.falls_on(None, config.every_n_epochs):
            paths.append(config.folder / f"{config.name}-{moment.epoch:06d}.safetensors")
        return paths

    def _save(self, path: Path, moment: Moment) -> None:
        place = {"ss_steps": str(moment.step), "ss_epoch": str(moment.epoch)}
        metadata = {**self.config.metadata, **(place if self.config.tells_progress else {})}
        with self.weights():
            self.write(path, metadata)


class Rotation(Protocol):
    """What says where saves are and how many of them are kept."""

    @property
    def folder(self) -> Path: ...  # noqa: D102 - see SaveConfig
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def every_n_steps(self) -> int | None: ...  # noqa: D102
    @property
    def every_n_epochs(self) -> int | None: ...  # noqa: D102
    @property
    def keep_steps(self) -> int | None: ...  # noqa: D102
    @property
    def keep_epochs(self) -> int | None: ...  # noqa: D102


def remove_old(rotation: Rotation, suffix: str, moment: Moment) -> None:
    """Remove the saves that are not to be kept, by Kohya's count.

    Of the saves by steps those of the last `keep_steps` steps stay, of those by epochs the last
    `keep_epochs` saves. A save makes room among its own kind alone; the last epoch has none, for
    it ends with the run's final save.

    Args:
        rotation: Where they are, and how many are kept.
        suffix: End of the saves' names, of files or of folders.
        moment: Now.
    """
    oldest: dict[str, int] = {}
    if rotation.keep_steps is not None and moment.falls_on(rotation.every_n_steps, None):
        oldest[STEP] = moment.step - rotation.keep_steps - 1
    by_epoch = moment.falls_on(None, rotation.every_n_epochs) and not moment.is_last
    if rotation.keep_epochs is not None and rotation.every_n_epochs is not None and by_epoch:
        oldest[EPOCH] = moment.epoch - rotation.keep_epochs * rotation.every_n_epochs
    for pattern, number in oldest.items():
        wanted = re.compile(re.escape(rotation.name) + pattern + re.escape(suffix))
        for path in rotation.folder.glob(f"*{suffix}"):
            found = wanted.fullmatch(path.name)
            if found is None or int(found[1]) > number:
                continue
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink()
