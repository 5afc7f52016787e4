"""What a file of weights is, read from its header: no tensor is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.weights.files import StoredTensor, read_header
from anima_pipe.weights.kinds import LLM_ADAPTER, QWEN3, TRANSFORMER, VAE, find_kind

WITHOUT_TEXT_ADAPTER: Final = "a Cosmos-Predict2 transformer without Anima's text adapter"
"""What a transformer is whose text adapter may be in a file of its own."""

_QWEN3_WIDTH: Final = 1024
"""Width of Qwen3-0.6B's hidden states, the one that Anima's text adapter takes."""

_BLOCK: Final = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """What a header says."""

    kind: str
    """In words, for messages."""
    option: str | None
    """The option that takes such a file; None for files of other programs."""
    size: int
    """Bytes."""
    dtype: str
    """That of most numbers, as safetensors spells it."""
    blocks: int
    """Transformer blocks; 0 where it has none."""


def describe_weights(path: Path) -> WeightFile:
    """Tell what a safetensors file is.

    Raises:
        CheckpointError: It is missing, damaged, or not a safetensors file.
    """
    header = read_header(path)
    kind, option = _kind(header)
    return WeightFile(
        kind=kind,
        option=option,
        size=path.stat().st_size,
        dtype=_main_dtype(header),
        blocks=_count_blocks(header) if option not in (VAE, LLM_ADAPTER) else 0,
    )


def _kind(header: Mapping[str, StoredTensor]) -> tuple[str, str | None]:
    names = header.keys()
    if any("llm_adapter.out_proj" in name for name in names) and _has(names, "x_embedder."):
        return "Anima transformer", TRANSFORMER
    if _has(names, "x_embedder.") and _has(names, "adaln_modulation"):
        return WITHOUT_TEXT_ADAPTER, None
    if _has(names, "encoder.downsamples.0.residual.0.gamma") or (
        _has(names, "encoder.conv_in.weight") and _has(names, "encoder.down_blocks.0.norm1.gamma")
    ):
        return "Wan 2.1 / Qwen-Image VAE", VAE
    embedding = next((n for n in names if n.endswith("embed_tokens.weight")), None)
    if embedding and _has(names, "self_attn.q_norm"):
        width = header[embedding].shape[-1]
        if width == _QWEN3_WIDTH:
            return "Qwen3-0.6B", QWEN3
        return f"a Qwen3 of width {width}", None
    known = find_kind(names)
    if known and known.option == LLM_ADAPTER:
        return known.words, LLM_ADAPTER
    return (known.words if known else "of no known kind"), None


def _has(names: Collection[str], piece: str) -> bool:
    return any(piece in name for name in names)


def _main_dtype(header: Mapping[str, StoredTensor]) -> str:
    total = Counter[str]()
    for tensor in header.values():
        total[tensor.dtype] += tensor.stop - tensor.start
    return max(total, key=lambda dtype: total[dtype]) if total else "none"


def _count_blocks(names: Collection[str]) -> int:
    own = (name for name in names if "llm_adapter." not in name)
    numbers = [int(found[1]) for name in own if (found := _BLOCK.search(name))]
    return max(numbers, default=-1) + 1
