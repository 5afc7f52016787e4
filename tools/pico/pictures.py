"""Pictures of the embedded model's world to train on, made with their captions by all cores."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import caption, draw_scene

SHAPES: Final = ((128, 128), (128, 128), (128, 128), (112, 144), (144, 112))
"""(width, height) of pictures, in turn."""
_PART: Final = 500


def world_pictures(count: int, side: int, seed: int) -> np.ndarray:
    """Return `count` pictures of the world that are square: UInt8[count, side, side, 3]."""
    parts = [(seed, first, min(_PART, count - first)) for first in range(0, count, _PART)]
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(partial(_part, side), parts)))


def _part(side: int, part: tuple[int, int, int]) -> np.ndarray:
    seed, first, count = part
    rng = np.random.default_rng((seed, first))
    return np.stack([np.asarray(paint(draw_scene(rng), (side, side), rng)) for _ in range(count)])


def write_dataset(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` pictures with captions beside them; return the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(seed, first, min(_PART, count - first)) for first in range(0, count, _PART)]
    with ProcessPoolExecutor() as pool:
        return [line for lines in pool.map(partial(_write, folder), parts) for line in lines]


def _write(folder: Path, part: tuple[int, int, int]) -> Sequence[str]:
    seed, first, count = part
    rng = np.random.default_rng((seed, first))
    captions: list[str] = []
    for number in range(first, first + count):
        scene = draw_scene(rng)
        text = caption(scene, quality=rng.random() < 0.7, sentence=rng.random() < 0.5)
        paint(scene, SHAPES[number % len(SHAPES)], rng).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(text + "\n", encoding="utf-8")
        captions.append(text)
    return captions
