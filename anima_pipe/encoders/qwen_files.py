"""Which files make a Qwen3 text encoder; nothing is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anima_pipe.errors import CheckpointError
from anima_pipe.plain_text import parsed_json

QWEN3_VOCABULARY = 151936
"""Rows of the embedding in every released Qwen3."""
BUNDLED_TOKENIZER = Path(__file__).parent / "qwen3_tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenFiles:
    """The files of one text encoder."""

    source: Path
    """What the user named: a folder or a file."""
    config: Path | None
    """config.json; None for a single file, whose shapes tell enough."""
    weights: tuple[Path, ...]
    """One file or the shards of one."""
    tokenizer: tuple[Path, ...]
    """tokenizer.json, or else vocab.json, merges.txt and perhaps tokenizer_config.json."""
    has_own_tokenizer: bool
    """Whether the tokenizer came with the weights; else it is the one in this package."""


def find_qwen_files(source: Path) -> QwenFiles:
    """Find the files of a Hugging Face folder, or of a single file and what lies beside it.

    Raises:
        CheckpointError: There is nothing, or something is missing.
    """
    if not source.exists():
        raise CheckpointError(
            f"{source} does not exist", "give the folder or the .safetensors file of Qwen3-0.6B"
        )
    folder = source if source.is_dir() else source.parent
    own = _tokenizer_in(folder)
    return QwenFiles(
        source=source,
        config=_config_in(source) if source.is_dir() else None,
        weights=_weights_in(source) if source.is_dir() else (source,),
        tokenizer=own or _tokenizer_in(BUNDLED_TOKENIZER),
        has_own_tokenizer=bool(own),
    )


def find_tokenizer(source: Path | None) -> tuple[Path, ...]:
    """Return the files of the tokenizer beside a text encoder's weights, or of the built-in one.

    Args:
        source: The folder or file of the encoder, which need not be there; None: the built-in one.
    """
    folder = source if source is None or source.is_dir() else source.parent
    return (_tokenizer_in(folder) if folder else ()) or _tokenizer_in(BUNDLED_TOKENIZER)


def _tokenizer_in(folder: Path) -> tuple[Path, ...]:
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json",)
    parts = [folder / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
    whole = parts[0].is_file() and parts[1].is_file()
    return tuple(part for part in parts if part.is_file()) if whole else ()


def _config_in(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json",
            "give the folder of Qwen3-0.6B, or its .safetensors file",
        )
    return folder / "config.json"


def _weights_in(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        found = tuple(sorted(folder.glob("*.safetensors")))
        if len(found) != 1:
            raise CheckpointError(
                f"{folder} has {len(found)} .safetensors files and no {index.name}",
                "download the whole folder of Qwen3-0.6B, or give one .safetensors file",
            )
        return found
    try:
        shards = {folder / name for name in parsed_json(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r})", "download it again") from error
    if missing := sorted(shard.name for shard in shards if not shard.is_file()):
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}, which {index.name} names", "download them"
        )
    return tuple(sorted(shards))
