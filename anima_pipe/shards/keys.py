"""The names that samples are cached under: hashes of everything that changes their tensors.

A key says nothing about the encoder: encoder, encoding version and dtype choose the folder, see
`anima_pipe.shards.folders`. What changes no tensor (file names, repeats, learning rates, dropout)
is in no key, so changing it encodes nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from anima_pipe.records import BucketChoice, Text, WeightedText

LATENT_KEYS: Final = "anima-pipe latent 1"
"""Raised when the same fields come to mean other pixels: all latents are then encoded again."""

MASK_KEYS: Final = "anima-pipe mask 1"
"""Raised when the same fields come to mean other numbers."""

TEXT_KEYS: Final = "anima-pipe text 1"
"""Raised when the same caption comes to mean other tokens."""


def latent_key(
    *,
    content: str,
    choice: BucketChoice,
    flipped: bool,
    interpolation: str | None,
    alpha: str = "white",
) -> str:
    """Return the key of one picture as the VAE sees it.

    Args:
        content: Hash of the image file's bytes.
        choice: Bucket, size after resizing, and crop.
        flipped: Mirrored left to right before encoding.
        interpolation: Resampling filter by Kohya's name; None: the default pair of filters.
        alpha: What transparent pixels are laid over.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    fields = {
        "content": content,
        "bucket": choice.bucket,
        "resized": choice.resized,
        "crop": choice.crop,
        "flipped": flipped,
        "interpolation": interpolation,
        "alpha": alpha,
    }
    return _digest(LATENT_KEYS, fields)


def mask_key(
    *,
    content: str,
    channel: str,
    choice: BucketChoice,
    flipped: bool,
    interpolation: str | None,
) -> str:
    """Return the key of one mask as it lies over a latent.

    Args:
        content: Hash of the bytes of the file that it is read from.
        channel: Which channel of that file.
        choice: Bucket, size after resizing, and crop of the picture.
        flipped: Mirrored left to right.
        interpolation: Resampling filter by Kohya's name; None: the default pair of filters.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    fields = {
        "content": content,
        "channel": channel,
        "bucket": choice.bucket,
        "resized": choice.resized,
        "crop": choice.crop,
        "flipped": flipped,
        "interpolation": interpolation,
    }
    return _digest(MASK_KEYS, fields)


def text_key(text: Text) -> str:
    """Return the key of a final text: 32 hexadecimal digits, the same on every machine.

    A prompt without weights has the key of the caption that reads the same.
    """
    if isinstance(text, WeightedText):
        return _digest(TEXT_KEYS, {"parts": text.parts})
    return _digest(TEXT_KEYS, {"caption": text})


def _digest(version: str, fields: Mapping[str, object]) -> str:
    # ASCII, sorted and without spaces: one text for one meaning, whatever the locale; and captions
    # with unpaired surrogates, which UTF-8 refuses, still have a key.
    canonical = json.dumps([version, fields], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).hexdigest()
