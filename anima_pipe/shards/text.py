"""Encoded texts in the cache: `qwen_hidden` and `t5_ids`, each at its real length.

What weights a prompt's tokens have stands in the sample's JSON: a shard's samples hold the same
tensors, and captions, of which there are most, have no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from anima_pipe.errors import CacheError
from anima_pipe.records import Text, TextCondition, WeightedText
from anima_pipe.shards.codec import Codec
from anima_pipe.shards.folders import StoredDtype
from anima_pipe.shards.store import Store
from anima_pipe.shards.writer import SHARD_BYTES, ShardWriter


def _pack(condition: TextCondition) -> Mapping[str, torch.Tensor]:
    hidden, ids = condition.qwen_hidden, condition.t5_ids
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"qwen_hidden is Float[Lq, S], not {hidden.dtype}{list(hidden.shape)}")
    if ids.ndim != 1 or len(ids) == 0 or ids.is_floating_point():
        raise ValueError(f"t5_ids is Int[Lt], not {ids.dtype}{list(ids.shape)}")
    return {"qwen_hidden": hidden, "t5_ids": ids.to(torch.int32)}


def _unpack(tensors: Mapping[str, torch.Tensor]) -> TextCondition:
    return TextCondition(qwen_hidden=tensors["qwen_hidden"], t5_ids=tensors["t5_ids"])


TEXT: Final = Codec(kind="text", command="encode-text", pack=_pack, unpack=_unpack)


def text_metadata(text: Text, condition: TextCondition) -> dict[str, object]:
    """Return what the cache notes about a text beside its tensors."""
    if not isinstance(text, WeightedText) or condition.t5_weights is None:
        return {"caption": str(text)}
    weights = condition.t5_weights.tolist()
    return {"caption": str(text), "parts": text.parts, "t5_weights": weights}


def noted_text(metadata: Mapping[str, Any]) -> Text:
    """Return the text that the cache noted something about."""
    if "parts" not in metadata:
        return str(metadata["caption"])
    return WeightedText(tuple((words, weight) for words, weight in metadata["parts"]))


def prompt_condition(texts: Store[TextCondition], key: str) -> TextCondition:
    """Return a cached text with the weights of its tokens.

    Raises:
        CacheError: There is no such sample, or it is damaged.
    """
    weights = texts.metadata(key).get("t5_weights")
    condition = texts[key]
    return replace(condition, t5_weights=torch.tensor(weights)) if weights else condition


def caption_of(texts: Store[TextCondition], key: str) -> str:
    """Return the text that a sample was encoded from.

    Raises:
        CacheError: There is no such sample, it is damaged, or its writer has not noted the text.
    """
    noted = texts.metadata(key)
    if "caption" not in noted:
        raise CacheError(
            f"text {key} in {texts.folder} does not say what it was encoded from",
            "encode the captions with `anima-pipe encode-text` into a new cache folder",
        )
    return str(noted["caption"])


class TextWriter(ShardWriter[TextCondition]):
    """Writes encoded captions; an empty caption has no Qwen rows. See `ShardWriter`."""

    def __init__(
        self,
        cache_dir: Path | str,
        fingerprint: str,
        dtype: StoredDtype,
        encoder_name: str,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        super().__init__(TEXT, cache_dir, fingerprint, dtype, encoder_name, shard_bytes)
