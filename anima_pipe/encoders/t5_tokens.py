"""T5's tokenizer, all of T5 that Anima uses: its text adapter embeds the ids by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from anima_pipe.encoders.tokenizer_files import load_tokenizer
from anima_pipe.errors import ConfigError
from anima_pipe.plain_text import parsed_json
from anima_pipe.records import WeightedText

REQUIRED_FILES = ("config.json", "spiece.model", "tokenizer.json")
PADDING = 0
END_OF_SEQUENCE = 1
EMBEDDED_IDS = 32128
"""Rows of the embedding in Anima's text adapter."""

RELEASED_PIECES = 32000
"""Of T5's vocabulary; those of tiny models are smaller."""
_LANDMARKS = {"X": 4, "▁the": 8, "▁and": 11, "▁photo": 1202, "▁blue": 1692, "▁girl": 3202}
"""Some pieces of T5's vocabulary and their ids: others of the same size have them elsewhere."""

# Plain enough for both libraries to agree on, whatever they do about special tokens and blanks.
_PROBES = (
    "1girl, solo, long hair, blue eyes, smile",
    "masterpiece, best quality, score_7, safe, @artist name",
    "A photo of a cat that sits on a wooden bench.",
)


class T5Tokens:
    """Captions to T5 ids, closed by </s>, neither cut nor padded.

    Args:
        folder: A folder with config.json, spiece.model and tokenizer.json.

    Raises:
        ConfigError: Files are missing, damaged, or disagree.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _checked_tokenizer(folder)

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption; those of the empty one are [1]."""
        return [*self._ids(caption), END_OF_SEQUENCE]

    def encode_weighted(self, text: WeightedText) -> tuple[list[int], list[float]]:
        """Return the ids of a prompt's stretches, one after the other, and each token's weight.

        The closing </s> weighs 1.
        """
        stretches = [(self._ids(words), weight) for words, weight in text.parts]
        ids = [token for tokens, _ in stretches for token in tokens]
        weights = [weight for tokens, weight in stretches for _ in tokens]
        return [*ids, END_OF_SEQUENCE], [*weights, 1.0]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def t5_counter(folder: Path | None) -> Callable[[str], int] | None:
    """Return what counts the ids of captions.

    Args:
        folder: Of the tokenizer; None: none is known, and nothing counts.

    Raises:
        ConfigError: Files are missing, damaged, or disagree.
    """
    if folder is None:
        return None
    tokens = T5Tokens(folder)
    return lambda caption: len(tokens.encode(caption))


def check_t5_tokenizer(folder: str | Path) -> None:
    """Make sure that a folder holds a T5 tokenizer whose files are whole and agree.

    Raises:
        ConfigError: Files are missing, damaged, or disagree; it names them.
    """
    _checked_tokenizer(Path(folder))


def _checked_tokenizer(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise ConfigError(f"T5 tokenizer folder {folder} does not exist", _fetch(folder))
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"T5 tokenizer folder {folder} lacks {', '.join(missing)}", _fetch(folder)
        )
    _check_config(folder / "config.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    _check_ids(folder / "tokenizer.json", tokenizer)
    _check_agreement(folder, tokenizer, _load_pieces(folder / "spiece.model"))
    return tokenizer


def _check_config(path: Path) -> None:
    try:
        stated = parsed_json(path.read_bytes())
        kind, end = stated.get("model_type", "t5"), stated.get("eos_token_id", END_OF_SEQUENCE)
        pad = stated.get("pad_token_id", PADDING)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be loaded ({error})", _fetch_anew(path.parent)) from error
    if (kind, end, pad) != ("t5", END_OF_SEQUENCE, PADDING):
        raise ConfigError(
            f"{path} is of model_type {kind!r} with </s> as {end} and <pad> as {pad}; T5's is 't5' "
            f"with </s> as {END_OF_SEQUENCE} and <pad> as {PADDING}",
            _fetch_anew(path.parent),
        )


def _check_ids(path: Path, tokenizer: Tokenizer) -> None:
    for token, wanted in (("<pad>", PADDING), ("</s>", END_OF_SEQUENCE)):
        if tokenizer.token_to_id(token) != wanted:
            raise ConfigError(
                f"{path} has {token} as {tokenizer.token_to_id(token)}; T5 has it as {wanted}",
                _fetch_anew(path.parent),
            )
    tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if tokens > EMBEDDED_IDS:
        raise ConfigError(
            f"{path} has {tokens} tokens; Anima's text adapter knows {EMBEDDED_IDS}",
            _ORIGINAL,
        )
    if tokens < RELEASED_PIECES:
        return
    for piece, wanted in _LANDMARKS.items():
        if tokenizer.token_to_id(piece) != wanted:
            raise ConfigError(
                f"{path} has another vocabulary than T5: {piece!r} as "
                f"{tokenizer.token_to_id(piece)} instead of {wanted}",
                _ORIGINAL,
            )


def _load_pieces(path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{path} cannot be loaded ({error})", _fetch_anew(path.parent)) from error


def _check_agreement(folder: Path, tokenizer: Tokenizer, pieces: SentencePieceProcessor) -> None:
    for disagreement in _disagreements(tokenizer, pieces):
        raise ConfigError(
            f"tokenizer.json and spiece.model in {folder} disagree: {disagreement}",
            _fetch_anew(folder),
        )


def _disagreements(tokenizer: Tokenizer, pieces: SentencePieceProcessor) -> Iterator[str]:
    """Compare piece by piece, then on captions, where the rules of normalisation show too."""
    names = pieces.id_to_piece(list(range(pieces.get_piece_size())))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    # tokenizer.json has T5's sentinels besides, which sentencepiece does not know.
    known = sum(not token.startswith("<extra_id_") for token in vocabulary)
    if known != len(names):
        yield f"{known} pieces against {len(names)}"
    if wrong := [name for place, name in enumerate(names) if vocabulary.get(name) != place]:
        yield f"other ids for {', '.join(wrong[:3])}"
    for caption in _PROBES:
        if tokenizer.encode(caption, add_special_tokens=False).ids != pieces.encode(caption):
            yield f"other ids for {caption!r}"


_ORIGINAL = "give the tokenizer of the original T5, not of mT5, UMT5 or another language's"


def _fetch(folder: Path) -> str:
    return f"run `anima-pipe fetch-tokenizer --t5_tokenizer_dir {folder}`"


def _fetch_anew(folder: Path) -> str:
    """Files that are there are replaced by --force alone."""
    return f"run `anima-pipe fetch-tokenizer --force --t5_tokenizer_dir {folder}`"
