"""The frozen networks that fill the caches: the image VAE, Qwen3 and T5's tokenizer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
    from anima_pipe.encoders.t5_tokens import check_t5_tokenizer
    from anima_pipe.encoders.text import TextEncoder, load_text_encoder
    from anima_pipe.encoders.vae import ImageVae
    from anima_pipe.encoders.vae_load import load_vae

__all__ = [
    "ImageVae",
    "TextEncoder",
    "check_t5_tokenizer",
    "load_text_encoder",
    "load_vae",
    "text_fingerprint",
    "vae_fingerprint",
]

# Nothing is imported until it is used: torch and transformers take seconds.
_HOMES = {
    "ImageVae": "vae",
    "TextEncoder": "text",
    "check_t5_tokenizer": "t5_tokens",
    "load_text_encoder": "text",
    "load_vae": "vae_load",
    "text_fingerprint": "fingerprints",
    "vae_fingerprint": "fingerprints",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
