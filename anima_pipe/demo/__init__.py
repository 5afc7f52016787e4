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
DEMO_TRAIN_ARGS = DEMO_FOLDER / "train_args.toml"
DEMO_DATASET = DEMO_FOLDER / "dataset.toml"
DEMO_PROMPTS = DEMO_FOLDER / "prompts.txt"


def options() -> dict[str, object]:
    """Return the options that train the embedded model on the embedded pictures, by their names."""
    return {
        "config_file": DEMO_TRAIN_ARGS,
        "dataset_config": DEMO_DATASET,
        "sample_prompts": DEMO_PROMPTS,
        "pretrained_model_name_or_path": DEMO_TRANSFORMER,
        "vae": DEMO_VAE,
        "qwen3": DEMO_QWEN,
        "t5_tokenizer_dir": DEMO_T5_TOKENIZER,
    }
