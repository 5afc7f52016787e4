"""Training without an adapter: the model's own weights."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from anima_pipe.finetuning.checkpoint import save_checkpoint
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.runs.base import load_merged
from anima_pipe.runs.settings.trained import NoAdapter
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.subject import Subject
from anima_pipe.runtime import Rank

ARCHITECTURE: Final = "anima-preview"
"""Kohya's name for checkpoints of every release."""


@dataclass(frozen=True, slots=True)
class Finetuning:
    """Training the model itself.

    Args:
        settings: Of the run.
        own: What they say of its weights.
    """

    architecture: ClassVar[str] = ARCHITECTURE

    settings: TrainSettings
    own: NoAdapter

    def check(self, skeleton: AnimaTransformer) -> None:
        """Check on a model without weights that something of it trains.

        Raises:
            ConfigError: Nothing does, or a part has no tensors.
        """
        self._whole(skeleton)

    def load(self, device: torch.device, sharded: Rank | None) -> AnimaTransformer:
        """Load the model as its weights train: in bf16 throughout, or in fp32."""
        del sharded  # which is refused
        dtype = torch.bfloat16 if self.own.full_bf16 else torch.float32
        return load_merged(self.settings.model, dtype, device)

    @contextmanager
    def put_on(
        self, module: TextConditionedTransformer, seed: int, *, shared: bool
    ) -> Generator[Subject]:
        """Let the model's weights train."""
        del seed, shared  # nothing is drawn, and a caller's own model is refused
        trained, dtype = self._whole(module.transformer), self.settings.save.dtype
        if module.transformer.dtype != self.settings.model.dtype:
            module.transformer.compute_in(self.settings.model.dtype)
        yield Subject(
            trained=trained,
            write=lambda path, metadata: save_checkpoint(trained, path, metadata, dtype),
        )

    def facts(self) -> dict[str, object]:
        """Return what a state says of it; see `made_with`."""
        return {"network_module": "none"}

    def file_facts(self) -> dict[str, object]:
        """Return what its files say of it, by names like Kohya's."""
        rates = {f"ss_{part.name}_lr": part.rate for part in self.own.part_rates}
        return {"ss_full_bf16": self.own.full_bf16, **rates}

    def _whole(self, model: AnimaTransformer) -> WholeModel:
        return WholeModel(model, self.own.part_rates, self.settings.heeded_rate)
