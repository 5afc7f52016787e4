"""The model of a run, loaded: frozen as a base, or as it is."""

from __future__ import annotations

import torch

from anima_pipe.adapters import load_adapter
from anima_pipe.adapters.adapter import merge_together
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.adapters.sharded import shard
from anima_pipe.model import BLOCK_LAYERS, AnimaTransformer, load_transformer
from anima_pipe.runs.settings.trained import ModelSettings
from anima_pipe.runtime import Rank


def load_base(
    settings: ModelSettings, device: torch.device | str, sharded: Rank | None = None
) -> AnimaTransformer:
    """Load the frozen transformer, with the adapters that were to be merged into it.

    Several trainings in one process may share it, one after the other: see `train`.

    Args:
        settings: Which one, and how it is kept.
        device: Where it is wanted.
        sharded: This process, where the processes keep a part of it each; None: it stays whole.

    Raises:
        CheckpointError: A file is missing, of another model or damaged.
    """
    # What is to be halved need not be whole on the device first.
    place = "cpu" if settings.fp8_base or sharded else device
    transformer = load_merged(settings, settings.dtype, place)
    transformer.requires_grad_(requires_grad=False)
    if settings.fp8_base:
        keep_in_eight_bits(transformer, BLOCK_LAYERS)
    if sharded:
        shard(transformer, sharded)
    return transformer.to(device)


def load_merged(
    settings: ModelSettings, dtype: torch.dtype, device: torch.device | str
) -> AnimaTransformer:
    """Load the transformer, with the adapters that were to be merged into it.

    Args:
        settings: Which one.
        dtype: Of its weights.
        device: Where it is wanted.

    Raises:
        CheckpointError: A file is missing, of another model or damaged.
    """
    transformer = load_transformer(
        settings.transformer, dtype, device, llm_adapter=settings.llm_adapter
    )
    lenient = settings.allow_unmatched
    merge_together(
        [
            load_adapter(path, transformer, strength, allow_unmatched=lenient)
            for path, strength in settings.base_weights
        ]
    )
    return transformer
