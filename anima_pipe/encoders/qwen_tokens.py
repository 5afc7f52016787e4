"""Qwen3's tokenizer: raw text, without templates."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from anima_pipe.encoders.qwen_files import QWEN3_VOCABULARY, QwenFiles
from anima_pipe.encoders.tokenizer_files import load_tokenizer
from anima_pipe.errors import ConfigError
from anima_pipe.plain_text import parsed_json

# How Qwen2 and Qwen3 cut text before merging bytes: contractions, words, single digits,
# punctuation, line ends, blanks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PROBE = ("1girl, solo", [16, 28552, 11, 13529])


def load_qwen_tokenizer(files: QwenFiles, vocabulary: int) -> Tokenizer:
    """Load the tokenizer that came with the weights, or the one in this package.

    Args:
        files: Where it is.
        vocabulary: Rows of the network's embedding.

    Raises:
        ConfigError: It is damaged, or does not fit the weights.
    """
    remedy = (
        "put the weights into a folder of their own, with the tokenizer.json (or vocab.json and "
        "merges.txt) that belongs to them"
    )
    if not files.has_own_tokenizer and vocabulary != QWEN3_VOCABULARY:
        raise ConfigError(
            f"{files.source} has no tokenizer, and its vocabulary of {vocabulary} is not the "
            f"{QWEN3_VOCABULARY} of the built-in one",
            remedy,
        )
    main = files.tokenizer[0]
    tokenizer = read_qwen_tokenizer(files.tokenizer)
    tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if tokens > vocabulary:
        raise ConfigError(
            f"{main} has {tokens} tokens, but the weights in {files.source} know {vocabulary}",
            remedy,
        )
    text, ids = _PROBE
    # A single file often lies in a folder of many models, beside a tokenizer of another one.
    if (
        vocabulary == QWEN3_VOCABULARY
        and tokenizer.encode(text, add_special_tokens=False).ids != ids
    ):
        raise ConfigError(f"{main} is not Qwen3's tokenizer: it reads {text!r} otherwise", remedy)
    return tokenizer


def read_qwen_tokenizer(parts: tuple[Path, ...]) -> Tokenizer:
    """Read a tokenizer's files: tokenizer.json, or what it is built from.

    Raises:
        ConfigError: It is damaged.
    """
    whole = parts[0].name == "tokenizer.json"
    return load_tokenizer(parts[0]) if whole else _built(parts)


def _built(parts: tuple[Path, ...]) -> Tokenizer:
    """Build Qwen's tokenizer from its vocabulary, its merges and perhaps its added tokens."""
    vocabulary, merges, *settings = parts
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
        added = parsed_json(settings[0].read_bytes())["added_tokens_decoder"] if settings else {}
        tokens = [(int(place), AddedToken(**token)) for place, token in added.items()]
    # The tokenizers library raises bare Exceptions.
    except Exception as error:
        raise ConfigError(
            f"the tokenizer in {vocabulary.parent} cannot be loaded ({error})", "download it again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_tokens([token for _, token in sorted(tokens, key=lambda item: item[0])])
    return tokenizer
