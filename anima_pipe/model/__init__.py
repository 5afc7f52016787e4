"""The Anima transformer and its text adapter, and how they are loaded from a checkpoint.

The names below are imported when they are first used, so that what only reads a header or a
configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anima_pipe.model.anima import (
        BLOCK_LAYERS,
        AnimaTransformer,
        TextConditionedTransformer,
    )
    from anima_pipe.model.config import PARTS, LlmAdapterConfig, TransformerConfig
    from anima_pipe.model.load import load_transformer, read_transformer_config

__all__ = [
    "BLOCK_LAYERS",
    "PARTS",
    "AnimaTransformer",
    "LlmAdapterConfig",
    "TextConditionedTransformer",
    "TransformerConfig",
    "load_transformer",
    "read_transformer_config",
]

_HOMES = {
    "BLOCK_LAYERS": "anima",
    "PARTS": "config",
    "AnimaTransformer": "anima",
    "LlmAdapterConfig": "config",
    "TextConditionedTransformer": "anima",
    "TransformerConfig": "config",
    "load_transformer": "load",
    "read_transformer_config": "load",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
