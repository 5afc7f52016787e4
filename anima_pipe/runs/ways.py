"""The two ways to train: an adapter on a frozen model, or the model's own weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

import torch

from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.runs.adapting import Adapting
from anima_pipe.runs.finetuning import Finetuning
from anima_pipe.runs.settings.trained import NoAdapter
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.subject import Subject
from anima_pipe.runtime import Rank


class Way(Protocol):
    """What a run does otherwise, according to what it trains."""

    architecture: ClassVar[str]
    """What its files are called in modelspec's words."""

    def check(self, skeleton: AnimaTransformer) -> None:
        """Find out on a model without weights whether it can be trained and saved as asked.

        Raises:
            ConfigError: It cannot.
            CheckpointError: A file to go on from does not fit.
        """
        ...

    def load(self, device: torch.device, sharded: Rank | None) -> AnimaTransformer:
        """Load the model; `sharded` is this process where each is to keep a part of it."""
        ...

    def put_on(
        self, module: TextConditionedTransformer, seed: int, *, shared: bool
    ) -> AbstractContextManager[Subject]:
        """Make the model ready; one that the caller shares is left as it was.

        Raises:
            ConfigError: What is to be trained cannot be.
        """
        ...

    def facts(self) -> dict[str, object]:
        """Return what two runs must share for one to go on from the other's state."""
        ...

    def file_facts(self) -> dict[str, object]:
        """Return what saved files say of it, by Kohya's names."""
        ...


def way_of(settings: TrainSettings) -> Way:
    """Return the way in which a run trains."""
    own = settings.adapter
    return Finetuning(settings, own) if isinstance(own, NoAdapter) else Adapting(settings, own)
