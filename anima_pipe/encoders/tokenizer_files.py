"""Loading tokenizer.json with the tokenizers library alone: no network, no torch."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from anima_pipe.errors import ConfigError


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json that neither cuts nor pads what it reads.

    Raises:
        ConfigError: The file is damaged or not a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The tokenizers library raises bare Exceptions.
    except Exception as error:
        raise ConfigError(f"{path} cannot be loaded ({error})", "download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
