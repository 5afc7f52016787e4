"""What a model learned of a concept: does it draw it when asked, and everything else as before?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from anima_pipe.demo.world.concepts import Concept
from anima_pipe.demo.world.scene import caption
from anima_pipe.evaluation.prompts import ModelFiles, draw_prompts
from anima_pipe.evaluation.world import held_out_scenes, prompt_of, score

PROMPTS: Final = 10
"""With the trigger, and as many without."""
SEED: Final = 77
"""Of the scenes that are asked for; the demo's pictures have another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What an adapter changed, shares from 0 to 1."""

    concept_before: float
    """Of the prompts with the trigger, how many showed the concept without the adapter."""
    concept_after: float
    """The same with it."""
    unrelated_kept: float
    """Of what was found in prompts without the trigger, how much still is."""


def measure_concept(files: ModelFiles, adapter: Path, concept: Concept) -> Learned:
    """Draw prompts with the trigger and without, with the adapter and without, and check them."""
    rng = np.random.default_rng(SEED)
    asked = [prompt_of(concept.caption(concept.draw(rng)), number) for number in range(PROMPTS)]
    others = held_out_scenes(PROMPTS, SEED)
    unrelated = [
        prompt_of(caption(scene, sentence=False), PROMPTS + number)
        for number, scene in enumerate(others)
    ]
    before = draw_prompts(files, [*asked, *unrelated])
    after = draw_prompts(files, [*asked, *unrelated], adapter)
    kept = score(after[PROMPTS:], others).share / score(before[PROMPTS:], others).share
    return Learned(
        concept_before=sum(map(concept.is_in, before[:PROMPTS])) / PROMPTS,
        concept_after=sum(map(concept.is_in, after[:PROMPTS])) / PROMPTS,
        unrelated_kept=min(1.0, kept),
    )
