"""What the embedded model is and how well it draws: measured, and written into its card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import caption
from anima_pipe.drawing.sheets import draw_sheet
from anima_pipe.encoders import load_vae
from anima_pipe.evaluation.prompts import ModelFiles, draw_prompts
from anima_pipe.evaluation.world import held_out_scenes, prompts_of, score

SEED = 11
"""Of the held-out scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How well the embedded model does."""

    named_and_found: float
    """Share of the attributes named in held-out prompts that the checker finds, 0 to 1."""
    by_attribute: dict[str, float]
    reconstruction_psnr: float
    """Of the VAE, in dB, over the painted pictures of the same scenes."""
    bundle_bytes: int
    """Of all its files."""


def measure(bundle: Path, sheet: Path, prompts: int) -> Figures:
    """Draw held-out prompts, check them, and lay them out on a sheet beside painted pictures.

    Args:
        bundle: Folder of the files as they are shipped.
        sheet: The PNG to write.
        prompts: How many.
    """
    files = ModelFiles(
        transformer=bundle / "transformer.safetensors",
        vae=bundle / "vae.safetensors",
        qwen=bundle / "qwen3",
        t5_tokenizer=bundle / "t5_tokenizer",
    )
    scenes = held_out_scenes(prompts, SEED)
    drawn = draw_prompts(files, prompts_of(scenes))
    rng = np.random.default_rng(SEED)
    painted = [
        paint(scene, picture.size, rng) for scene, picture in zip(scenes, drawn, strict=True)
    ]
    result = score(drawn, scenes)
    rows = [[a, b] for a, b in zip(painted, drawn, strict=True)]
    names = [caption(scene, quality=False) for scene in scenes]
    draw_sheet(names, ["painted", "drawn"], rows).save(sheet)
    return Figures(
        named_and_found=round(result.share, 4),
        by_attribute={name: round(share, 4) for name, share in result.shares.items()},
        reconstruction_psnr=round(_reconstruction(files.vae, painted), 2),
        bundle_bytes=sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    )


def _reconstruction(vae: Path, pictures: list[Image.Image]) -> float:
    """Return the mean PSNR in dB of pictures that went through the VAE and back."""
    network = load_vae(vae)
    values: list[float] = []
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float().permute(2, 0, 1)[None]
        back = network.decode(network.encode(pixels)).clamp(-1, 1)
        values.append(float(10 * torch.log10(4 / (back - pixels).square().mean())))
    return sum(values) / len(values)


def write_figures(figures: Figures, path: Path) -> None:
    """Write them as JSON."""
    path.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
