"""The usual way to train: an adapter on a frozen model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from anima_pipe.adapters import Adapter, create_adapter, save_adapter
from anima_pipe.adapters.continued import continue_adapter
from anima_pipe.adapters.files import check_style, fitting_deltas, warn_of_unread_norms
from anima_pipe.adapters.headers import ARCHITECTURE, NETWORK_MODULES
from anima_pipe.hooks.saving import SaveConfig, Write
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.plain_text import json_text
from anima_pipe.runs.base import load_base
from anima_pipe.runs.facts import each, short_digest
from anima_pipe.runs.settings.trained import AdapterSettings
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.subject import Subject
from anima_pipe.runtime import Rank, warn


@dataclass(frozen=True, slots=True)
class Adapting:
    """Training an adapter.

    Args:
        settings: Of the run.
        own: What they say of the adapter.
    """

    architecture: ClassVar[str] = ARCHITECTURE

    settings: TrainSettings
    own: AdapterSettings

    def check(self, skeleton: AnimaTransformer) -> None:
        """Check on a model without weights what is to be put on it, and that it can be saved.

        Raises:
            CheckpointError: The adapter file to go on from does not fit.
            ConfigError: A pattern matches nothing, nothing is left to train, or the style of the
                adapter's file cannot express it.
        """
        if (start := self.own.network_weights) is not None:
            fitting_deltas(start, skeleton, allow_unmatched=self.settings.model.allow_unmatched)
            return
        arguments = self._arguments()
        # It starts from the weights.
        arguments |= {"pissa": False} if arguments.get("pissa") else {}
        check_style(create_adapter(self.own.kind, skeleton, **arguments), self.settings.save.style)

    def load(self, device: torch.device, sharded: Rank | None) -> AnimaTransformer:
        """Load the base, sharded over the processes if need be; see `load_base`."""
        return load_base(self.settings.model, device, sharded)

    @contextmanager
    def put_on(
        self, module: TextConditionedTransformer, seed: int, *, shared: bool
    ) -> Generator[Subject]:
        """Put the adapter on the model, and take it off a shared one.

        Raises:
            ConfigError: The adapter cannot be made, or the style of its file cannot express it.
        """
        adapter = self._prepared(module.transformer, seed)
        save, largest = self.settings.save, self.own.scale_weight_norms
        try:
            write = adapter_writer(adapter, save)
            warn_of_unread_norms(adapter.deltas, save.style)
            adapter.follow_passes(module)
            yield Subject(
                trained=adapter,
                write=write,
                after_step=None if largest is None else partial(adapter.limit_norms, largest),
            )
        finally:
            if shared:
                adapter.remove()

    def facts(self) -> dict[str, object]:
        """Return what a state says of it; see `made_with`."""
        own, start = self.own, self.own.network_weights
        return {
            # A state holds the tensors; which alphas they are scaled by, that file says.
            "network_weights": short_digest(start) if start else None,
            "scale_weight_norms": own.scale_weight_norms,
            "network_module": own.kind,
            **each("network_args", own.arguments),
        }

    def file_facts(self) -> dict[str, object]:
        """Return what its files say of it, by Kohya's names."""
        own, alpha = self.own, self.own.network_alpha
        return {
            "ss_network_module": NETWORK_MODULES.get(own.kind, f"networks.{own.kind}_anima"),
            "ss_network_dim": own.network_dim,
            "ss_network_alpha": float(own.network_dim) if alpha is None else alpha,
            "ss_network_args": json_text(dict(own.network_args)),
        }

    def _prepared(self, transformer: AnimaTransformer, seed: int) -> Adapter:
        """Put the adapter on the transformer: a fresh one, or one that goes on from a file."""
        own, start = self.own, self.own.network_weights
        arguments = self._arguments()
        if start is None:
            return create_adapter(own.kind, transformer, seed=seed, **arguments)
        continued, differences = continue_adapter(
            start,
            own.kind,
            transformer,
            dim_from_weights=own.dim_from_weights,
            allow_unmatched=self.settings.model.allow_unmatched,
            **arguments,
        )
        for difference in differences:
            warn(f"network_weights {start.name}: {difference}")
        return continued

    def _arguments(self) -> dict[str, Any]:
        """Return what `create_adapter` takes besides kind, model and seed."""
        return {
            **self.own.arguments,
            "parts": self.own.part_rates,
            "learning_rate": self.settings.heeded_rate,
        }


def adapter_writer(adapter: Adapter, save: SaveConfig) -> Write:
    """Return what writes an adapter's files.

    Raises:
        ConfigError: Their style cannot express it.
    """
    check_style(adapter, save.style)
    return lambda path, metadata: save_adapter(
        adapter, path, style=save.style, dtype=save.dtype, metadata=metadata
    )
