"""Names for what an encoder computes: hashes of its files, without loading it.

A cache made under one fingerprint is never read under another. So a fingerprint changes with the
bytes of the weights and tokenizers, and with the version of the encoding, which is raised by hand
whenever the code's results change. The names and places of files stay out of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from anima_pipe.encoders.qwen_files import find_qwen_files
from anima_pipe.encoders.t5_tokens import REQUIRED_FILES
from anima_pipe.errors import CheckpointError, ConfigError, OutputError
from anima_pipe.files import refuse_endless, write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.stamps import Stamp, is_settled, stamp_of

VAE_ENCODING_VERSION = 1
"""Raise it when the same weights and pixels come to other latents."""
TEXT_ENCODING_VERSION = 1
"""Raise it when the same weights and captions come to other conditions."""

REMEMBERED_BYTES = 16 * 2**20
"""Smaller files are quicker to hash than to look up."""
REMEMBERED_FILES = 256


def vae_fingerprint(path: str | Path) -> str:
    """Return the name, 64 hex digits, of what `load_vae(path).encode` computes.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"VAE file {path} does not exist", "check the path")
    return _combined(f"vae {VAE_ENCODING_VERSION}", [file_digest(path)])


def text_fingerprint(qwen: str | Path, t5_tokenizer_dir: str | Path) -> str:
    """Return the name, 64 hex digits, of what `load_text_encoder(...).encode` computes.

    Raises:
        CheckpointError: Qwen's files are missing or cannot be read.
        ConfigError: Files of the T5 tokenizer are missing.
    """
    files = find_qwen_files(Path(qwen))
    config = [files.config] if files.config else []
    tokenizer = [Path(t5_tokenizer_dir) / name for name in REQUIRED_FILES]
    if missing := [path.name for path in tokenizer if not path.is_file()]:
        raise ConfigError(
            f"T5 tokenizer folder {t5_tokenizer_dir} lacks {', '.join(missing)}",
            f"run `anima-pipe fetch-tokenizer --t5_tokenizer_dir {t5_tokenizer_dir}`",
        )
    parts = [*config, *files.weights, *files.tokenizer, *tokenizer]
    return _combined(f"text {TEXT_ENCODING_VERSION}", [file_digest(path) for path in parts])


def _combined(version: str, digests: list[str]) -> str:
    return hashlib.sha256("\n".join([version, *digests]).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large one is remembered while the file stays as is.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        refuse_endless(path)
        stamp = stamp_of(path)
        if stamp.length < REMEMBERED_BYTES:
            return _hashed(path)
        place = str(path.resolve())
        remembered = _read_memory()
        if place in remembered and remembered[place][0] == stamp:
            return remembered[place][1]
        digest = _hashed(path)
        if is_settled(stamp) and stamp_of(path) == stamp:
            # Read again: another process may have remembered something in the meantime.
            _write_memory(_read_memory() | {place: (stamp, digest)})
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror})", "check its permissions and the disk"
        ) from error
    return digest


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "anima-pipe" / "hashes.json"


def _read_memory() -> dict[str, tuple[Stamp, str]]:
    """Return what is remembered, by path: nothing if the file is missing or damaged."""
    try:
        stored = parsed_json(_memory_file().read_bytes())
        return {
            str(place): (Stamp(*map(int, stamp)), str(digest))
            for place, (stamp, digest) in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_memory(memory: dict[str, tuple[Stamp, str]]) -> None:
    newest = dict(list(memory.items())[-REMEMBERED_FILES:])
    # A home that cannot be written costs some seconds per run, no more.
    with contextlib.suppress(OutputError):
        write_atomically(_memory_file(), json.dumps(newest, indent=0).encode())
