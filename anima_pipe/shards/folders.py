"""One folder per encoder: `<cache_dir>/<kind>-<fingerprint[:12]>-<dtype>/`, with its cache.json.

cache.json says in full whose tensors the folder holds; shards from any number of writers lie beside
it. Other weights, another encoding version or another dtype is another folder, so nothing is stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from anima_pipe import __version__
from anima_pipe.errors import CacheError
from anima_pipe.files import refusals_named, write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.sidecar import INDEX_SUFFIX

Kind = Literal["latents", "masks", "text"]
StoredDtype = Literal["fp16", "bf16", "fp32"]

MASK_CACHE: Final = "area-average-1"
"""Stands in for a fingerprint where there is no encoder: how masks come to latent resolution, and
the version of that. All masks share it, whatever the VAE and the dtype of the latents."""

_MADE_BY: Final[Mapping[Kind, str]] = {
    "latents": "--vae",
    "masks": "--vae",
    "text": "--qwen3 and --t5_tokenizer_dir",
}
"""The options that name what made a cache."""

FORMAT_VERSION: Final = 1
DESCRIPTION: Final = "cache.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose tensors a folder holds: the contents of its cache.json."""

    kind: Kind
    fingerprint: str
    """Hash of the encoder's weights and tokenizer files and of the encoding version."""
    encoder_name: str
    """For people: the file the encoder was loaded from. Not compared."""
    dtype: StoredDtype
    format_version: int = FORMAT_VERSION
    created_with: str = f"anima-pipe {__version__}"
    """Not compared."""

    @property
    def folder_name(self) -> str:
        """The folder's name within the cache folder."""
        return f"{self.kind}-{self.fingerprint[:12]}-{self.dtype}"

    def is_called(self, name: str) -> bool:
        """Tell whether `name` means this one.

        Args:
            name: A fingerprint or its beginning, with or without `-<dtype>` behind it.
        """
        in_full = f"{self.fingerprint}-{self.dtype}"
        return in_full.startswith(name) or self.folder_name == f"{self.kind}-{name}"

    def agrees_with(self, other: Identity) -> bool:
        """Tell whether the same tensors are meant."""
        return (self.kind, self.fingerprint, self.dtype, self.format_version) == (
            other.kind,
            other.fingerprint,
            other.dtype,
            other.format_version,
        )


def make_folder(cache_dir: Path, identity: Identity) -> Path:
    """Make an encoder's folder and describe it, or check that an existing one is that encoder's.

    Raises:
        CacheError: The folder was made with something else.
        OutputError: It cannot be made.
    """
    folder = cache_dir / identity.folder_name
    description = folder / DESCRIPTION
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not description.exists():
        # Two writers that start together both write the same here; the later rename wins.
        write_atomically(description, (json.dumps(asdict(identity), indent=1) + "\n").encode())
    if not read_identity(folder).agrees_with(identity):
        raise CacheError(
            f"{description} describes another cache than {identity.encoder_name} "
            f"({identity.fingerprint}, {identity.dtype}, format {identity.format_version})",
            f"remove {folder}, or choose another --cache_dir",
        )
    return folder


def read_identity(folder: Path) -> Identity:
    """Read a folder's cache.json.

    Raises:
        CacheError: It is missing, unreadable or of a format that this version does not know.
    """
    description = folder / DESCRIPTION
    try:
        identity = Identity(**parsed_json(description.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"{description} cannot be read: {error}",
            f"remove {folder} and encode again, or put the file back",
        ) from error
    if identity.format_version != FORMAT_VERSION:
        raise CacheError(
            f"{description} has format {identity.format_version}, this version reads "
            f"{FORMAT_VERSION}",
            f"use the anima-pipe that made it ({identity.created_with}), or encode again",
        )
    return identity


def find_folder(cache_dir: Path, kind: Kind, name: str | None) -> tuple[Path, Identity] | None:
    """Find the folder of an encoder.

    Args:
        cache_dir: The cache folder; need not exist.
        kind: Latents or text.
        name: See `Identity.is_called`; None: the only one that has shards.

    Returns:
        The folder and its description; None if there is none.

    Raises:
        CacheError: Several fit, or a folder with shards has no readable description.
    """
    found = described_folders(cache_dir, kind)
    if name is None:
        fitting = [entry for entry in found if _has_shards(entry[0])]
    else:
        fitting = [entry for entry in found if entry[1].is_called(name)]
    if len(fitting) > 1:
        raise CacheError(
            f"{cache_dir} holds {len(fitting)} {kind} caches: {_listed(fitting)}",
            f"name what made the right one by {_MADE_BY[kind]} (in a program: its fingerprint), or "
            "remove those you no longer need",
        )
    return fitting[0] if fitting else None


def described_folders(cache_dir: Path, kind: Kind) -> list[tuple[Path, Identity]]:
    """List the folders of one kind, with their descriptions, by name.

    A mirror is brought up to date first.

    Raises:
        CacheError: A folder with shards has no readable description, or a mirrored cache cannot be
            reached.
    """
    if mirror := mirror_at(cache_dir):
        mirror.pull()
    folders = sorted(cache_dir.glob(f"{kind}-*"))
    # A writer that starts just now may have made the folder and nothing in it.
    begun = [f for f in folders if (f / DESCRIPTION).exists() or _has_shards(f)]
    return [(folder, read_identity(folder)) for folder in begun]


def _has_shards(folder: Path) -> bool:
    # Of a mirrored cache the shards come once they are read.
    if mirror := mirror_at(folder.parent):
        return any(name.endswith(INDEX_SUFFIX) for name in mirror.names(folder))
    return any(folder.glob("*.tar"))


def _listed(found: Sequence[tuple[Path, Identity]]) -> str:
    return ", ".join(f"{folder.name} ({identity.encoder_name})" for folder, identity in found)
