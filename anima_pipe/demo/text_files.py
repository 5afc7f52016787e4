"""Write the demo's two tokenizers in the file formats of the released ones.

Qwen's is a byte-level BPE, T5's a sentencepiece unigram model with a `tokenizer.json` made from it.
Both are small, and trained on the captions that they are given.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anima_pipe.encoders.t5_conversion import write_fast_tokenizer

QWEN_VOCABULARY = 768
QWEN_PAD = "<|endoftext|>"
QWEN_SPECIAL = (QWEN_PAD, "<|im_start|>", "<|im_end|>")
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers cut text into words, from their published tokenizer.json."""
T5_PIECES = 768
T5_EMBEDDINGS = 32128
"""Rows of a T5's embedding, more than it has pieces."""

PRINTABLE = "".join(chr(code) for code in range(33, 127))
"""Trained on besides the captions, so that users' own Latin captions are not all unknown."""


def write_qwen_tokenizer(folder: Path, captions: Sequence[str]) -> int:
    """Train and write tokenizer.json, vocab.json, merges.txt, tokenizer_config.json.

    Returns:
        The number of tokens, special ones included.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=QWEN_VOCABULARY - len(QWEN_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    # Qwen's special tokens have the highest ids, behind the vocabulary.
    tokenizer.add_special_tokens(list(QWEN_SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": QWEN_PAD,
            "pad_token": QWEN_PAD,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": 131072,
        },
    )
    return tokenizer.get_vocab_size()


def write_t5_tokenizer(folder: Path, captions: Sequence[str]) -> int:
    """Train and write spiece.model, tokenizer.json, tokenizer_config.json, config.json.

    Returns:
        The number of pieces.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*captions, PRINTABLE]),
        model_writer=model,
        model_type="unigram",
        vocab_size=T5_PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    pieces = write_fast_tokenizer(model.getvalue(), folder / "tokenizer.json", sentinels=0)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_ids": 0,
            "legacy": False,
            "model_max_length": 512,
        },
    )
    _write_json(
        folder / "config.json",
        {
            "model_type": "t5",
            "vocab_size": T5_EMBEDDINGS,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
    )
    return pieces


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
