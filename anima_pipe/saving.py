"""Writes the adapter while it trains, under the names that Kohya gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from anima_pipe.adapters import Adapter, save_adapter
from anima_pipe.records import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """Where, how and when adapters are saved."""

    folder: Path
    name: str
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    dtype: torch.dtype | None = None
    """Of the tensors in the file; None: as they are trained."""
    style: str = "comfy"
    """Names of the tensors: comfy, diffusers or kohya."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def final_path(self) -> Path:
        """The file that the run ends with."""
        return self.folder / f"{self.name}.safetensors"


class Saver:
    """The hook that saves the adapter when it is due, and at the end."""

    reads_weights = True

    def __init__(self, adapter: Adapter, config: SaveConfig) -> None:
        self.adapter = adapter
        self.config = config

    def due(self, moment: Moment) -> bool:
        """Tell whether a file is due."""
        config = self.config
        return moment.is_last or moment.falls_on(config.every_n_steps, config.every_n_epochs)

    def at(self, moment: Moment) -> None:
        """Save under every name that is due."""
        config = self.config
        if moment.is_last:
            self._save(config.final_path, moment)
            return
        if moment.falls_on(config.every_n_steps, None):
            self._save(config.folder / f"{config.name}-step{moment.step:08d}.safetensors", moment)
        if moment.falls_on(None, config.every_n_epochs):
            self._save(config.folder / f"{config.name}-{moment.epoch:06d}.safetensors", moment)

    def _save(self, path: Path, moment: Moment) -> None:
        place = {"ss_steps": str(moment.step), "ss_epoch": str(moment.epoch)}
        metadata = {**self.config.metadata, **place}
        save_adapter(
            self.adapter,
            path,
            style=self.config.style,
            dtype=self.config.dtype,
            metadata=metadata,
        )
