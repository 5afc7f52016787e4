"""How much of what prompts named is in the pictures that a model drew of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from anima_pipe.demo.world.checker import check
from anima_pipe.demo.world.scene import Scene, caption, draw_scene
from anima_pipe.records import PreviewPrompt

SIDE: Final = 128
STEPS: Final = 16
GUIDANCE: Final = 3.0
SHIFT: Final = 2.0
"""Of the noise levels: small pictures bear less of it than large ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What was found of what was named."""

    wanted: Counter[str]
    """How often each kind of attribute was named."""
    right: Counter[str]
    """How often it was there."""

    @property
    def share(self) -> float:
        """Of all that was named, 0 to 1."""
        return self.right.total() / self.wanted.total()

    @property
    def shares(self) -> dict[str, float]:
        """The same by kind of attribute."""
        return {name: self.right[name] / count for name, count in sorted(self.wanted.items())}


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Return scenes that nothing was trained on."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, held_out=True) for _ in range(count)]


def prompt_of(text: str, seed: int) -> PreviewPrompt:
    """Return how the embedded model draws a text."""
    return PreviewPrompt(
        prompt=text,
        negative="",
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        guidance=GUIDANCE,
        shift=SHIFT,
        seed=seed,
    )


def prompts_of(scenes: Sequence[Scene]) -> list[PreviewPrompt]:
    """Return a prompt for each scene, every other one with a sentence, each from its own noise."""
    return [
        prompt_of(caption(scene, sentence=number % 2 == 0), number)
        for number, scene in enumerate(scenes)
    ]


def score(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> Score:
    """Check pictures against the scenes that they were drawn of."""
    wanted, right = Counter[str](), Counter[str]()
    for picture, scene in zip(pictures, scenes, strict=True):
        for finding in check(picture, scene):
            # "thing 2 colour" is a colour.
            kind = finding.attribute.split()[-1]
            wanted[kind] += 1
            right[kind] += finding.is_right
    return Score(wanted=wanted, right=right)
