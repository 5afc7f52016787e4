"""Encoded captions in the cache: `qwen_hidden` and `t5_ids`, each at its real length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from anima_pipe.records import TextCondition
from anima_pipe.shards.codec import Codec
from anima_pipe.shards.folders import StoredDtype
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
