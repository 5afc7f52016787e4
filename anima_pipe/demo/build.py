"""Make the demo's pictures and model anew: `python -m anima_pipe.demo.build --output folder`."""

from __future__ import annotations

import argparse
from pathlib import Path

from anima_pipe.demo import DEMO_FOLDER
from anima_pipe.demo.draw import write_contact_sheet, write_pictures
from anima_pipe.demo.pictures import PICTURES
from anima_pipe.demo.text_files import write_qwen_tokenizer, write_t5_tokenizer
from anima_pipe.demo.weights import (
    qwen_sizes,
    transformer_sizes,
    write_qwen,
    write_transformer,
    write_vae,
)


def build_bundle(folder: Path) -> None:
    """Write the tokenizers and untrained weights, the same on every run."""
    captions = [picture.caption for picture in PICTURES if picture.caption]
    tokens = write_qwen_tokenizer(folder / "qwen3", captions)
    pieces = write_t5_tokenizer(folder / "t5_tokenizer", captions)
    qwen = qwen_sizes(tokens)
    write_qwen(folder / "qwen3", qwen)
    write_transformer(folder / "transformer.safetensors", transformer_sizes(qwen), pieces)
    write_vae(folder / "vae.safetensors")


def main() -> None:
    """Build what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=DEMO_FOLDER, help="gets pictures/, bundle/ and a sheet"
    )
    output: Path = parser.parse_args().output
    write_pictures(output / "pictures")
    write_contact_sheet(output / "demo_pictures.png")
    build_bundle(output / "bundle")


if __name__ == "__main__":
    main()
