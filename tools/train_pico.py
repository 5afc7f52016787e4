"""Make the embedded model that draws: `python tools/train_pico.py FOLDER`.

    world's painter -> VAE -> pictures and captions -> tokenizers, Qwen3 -> caches -> transformer

Everything comes from code and seeds; nothing is downloaded. Each part is kept in FOLDER once it is
made, and a run that was interrupted goes on where it was. On two processor cores the VAE takes
about an hour and the transformer some hours; with a GPU, less.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from pico.card import measure, write_figures
from pico.pictures import vae_pictures, write_dataset
from pico.start import write_fresh_transformer, write_text_parts
from pico.transformer import TransformerTraining, train_transformer
from pico.vae import VaeTraining, save_vae, train_vae

from anima_pipe.weights.writing import write_tensors


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description="Make the embedded model that draws.")
    parser.add_argument("folder", type=Path, help="keeps everything; the result is in bundle/")
    parser.add_argument("--vae_pictures", type=int, default=12_000)
    parser.add_argument("--vae_steps", type=int, default=VaeTraining.steps)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="a quicker step of the VAE, by a C++ compiler",
    )
    parser.add_argument("--pictures", type=int, default=40_000, help="that the transformer sees")
    parser.add_argument("--steps", type=int, default=TransformerTraining.steps)
    parser.add_argument("--batch", type=int, default=TransformerTraining.batch)
    parser.add_argument("--prompts", type=int, default=64, help="held out, to be measured on")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    vae = VaeTraining(steps=given.vae_steps, compiled=given.compile)
    make_vae(folder, given.vae_pictures, vae)
    make_start(folder, given.pictures)
    training = TransformerTraining(steps=given.steps, batch=given.batch)
    make_bundle(folder, train_transformer(folder, training))
    figures = measure(folder / "bundle", folder / "sheet.png", given.prompts)
    write_figures(figures, folder / "bundle" / "figures.json")
    print(figures)


def make_vae(folder: Path, pictures: int, training: VaeTraining) -> None:
    """Train vae.safetensors."""
    path = folder / "vae.safetensors"
    if path.exists():
        return
    painted = vae_pictures(pictures, 128, seed=1)
    save_vae(train_vae(training, painted, folder), painted, path)


def make_start(folder: Path, pictures: int) -> None:
    """Write pictures/, tokenizers, Qwen3 and fresh.safetensors, which comes last."""
    fresh = folder / "fresh.safetensors"
    if fresh.exists():
        return
    captions = write_dataset(folder / "pictures", pictures, seed=2)
    write_fresh_transformer(fresh, write_text_parts(folder, captions))


def make_bundle(folder: Path, transformer: Path) -> None:
    """Gather what is shipped, the transformer's averaged weights in bf16."""
    bundle = folder / "bundle"
    for name in ("qwen3", "t5_tokenizer"):
        shutil.copytree(folder / name, bundle / name, dirs_exist_ok=True)
    shutil.copy(folder / "vae.safetensors", bundle)
    tensors = {name: value.to(torch.bfloat16) for name, value in load_file(transformer).items()}
    write_tensors(bundle / "transformer.safetensors", tensors, {"format": "pt"})


if __name__ == "__main__":
    main()
