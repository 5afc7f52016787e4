"""Make the demo's pictures and model anew: `python -m anima_pipe.demo.build --output folder`."""

from __future__ import annotations

import argparse
from pathlib import Path

from anima_pipe.demo import DEMO_FOLDER
from anima_pipe.demo.draw import write_contact_sheet, write_pictures
from anima_pipe.demo.pictures import PICTURES
from anima_pipe.demo.text_files import write_qwen_tokenizer, write_t5_tokenizer
from anima_pipe.demo.weights import write_qwen, write_transformer, write_vae


def build_pictures(folder: Path) -> None:
    """Write the pictures and captions, and a contact sheet of them beside the folder."""
    write_pictures(folder)


def build_bundle(folder: Path) -> None:
    """Write the tokenizers and untrained weights. The same again on every run."""
    captions = [picture.caption for picture in PICTURES if picture.caption]
    tokens = write_qwen_tokenizer(folder / "qwen3", captions)
    pieces = write_t5_tokenizer(folder / "t5_tokenizer", captions)
    write_qwen(folder / "qwen3", tokens)
    write_transformer(folder / "transformer.safetensors", pieces)
    write_vae(folder / "vae.safetensors")


def main() -> None:
    """Build what is committed, into a folder of one's choice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEMO_FOLDER, help="folder to write to")
    output: Path = parser.parse_args().output
    build_pictures(output / "pictures")
    build_bundle(output / "bundle")
    write_contact_sheet(output / "contact_sheet.png")


if __name__ == "__main__":
    main()
