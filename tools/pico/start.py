"""What the embedded model starts from: tokenizers made of captions, and weights before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from anima_pipe.demo.layouts import QwenSizes, TransformerSizes
from anima_pipe.demo.text_files import write_qwen_tokenizer, write_t5_tokenizer
from anima_pipe.demo.weights import Gains, qwen_sizes, write_qwen, write_transformer

T5_ROWS: Final = 1024
"""Rows of the embedding of T5 ids: more than the tokenizer has pieces, far fewer than T5's."""

GAINS: Final[Gains] = {
    # Every residual branch begins at nothing, and so does the velocity: see "adaLN-Zero" in
    # Peebles and Xie, Scalable Diffusion Models with Transformers (2023).
    "modulation_self_attn.2": 0.0,
    "modulation_cross_attn.2": 0.0,
    "modulation_mlp.2": 0.0,
    "adaln_modulation.2": 0.0,
    "t_embedder.1.linear_2": 0.0,
    "final_layer.linear": 0.0,
}


def write_text_parts(folder: Path, captions: Sequence[str]) -> QwenSizes:
    """Write qwen3/ and t5_tokenizer/; Qwen's weights are drawn, and stay as they are.

    The text adapter learns to read them: what it needs of them is that tokens differ.
    """
    tokens = write_qwen_tokenizer(folder / "qwen3", captions)
    # sentencepiece proposes only what two different words have in common: with each word doubled,
    # whole words become pieces, as they are in a tokenizer that has seen much text.
    words = sorted({word.strip(",.") for text in captions for word in text.split()})
    write_t5_tokenizer(folder / "t5_tokenizer", [*captions, *(word * 2 for word in words)])
    sizes = qwen_sizes(tokens)
    write_qwen(folder / "qwen3", sizes)
    return sizes


def write_fresh_transformer(path: Path, qwen: QwenSizes) -> None:
    """Write the transformer that training starts from."""
    sizes = TransformerSizes(
        width=192,
        blocks=5,
        head_width=32,
        context_width=128,
        adaln_rank=32,
        adapter_blocks=2,
        adapter_head_width=32,
        qwen_width=qwen.hidden_size,
        t5_rows=T5_ROWS,
    )
    write_transformer(path, sizes, T5_ROWS, GAINS)
