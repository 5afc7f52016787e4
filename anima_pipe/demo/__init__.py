"""The embedded default: a few drawn pictures and a tiny model in the released file formats."""

from __future__ import annotations

from pathlib import Path

DEMO_FOLDER = Path(__file__).parent
DEMO_PICTURES = DEMO_FOLDER / "pictures"
"""Folder of pictures with a `.txt` caption beside each."""
DEMO_BUNDLE = DEMO_FOLDER / "bundle"
DEMO_TRANSFORMER = DEMO_BUNDLE / "transformer.safetensors"
DEMO_VAE = DEMO_BUNDLE / "vae.safetensors"
DEMO_QWEN = DEMO_BUNDLE / "qwen3"
DEMO_T5_TOKENIZER = DEMO_BUNDLE / "t5_tokenizer"
