"""What tells how well a model draws: by the world's rules, and whether the demo's fox is there."""

from __future__ import annotations

import numpy as np
import pytest

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE
from anima_pipe.demo.world.concepts import CONCEPTS
from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import draw_scene
from anima_pipe.evaluation.prompts import ModelFiles, draw_prompts
from anima_pipe.evaluation.world import held_out_scenes, prompts_of, score

SQUARE = (128, 128)
EMBEDDED = ModelFiles(
    transformer=DEMO_TRANSFORMER, vae=DEMO_VAE, qwen=DEMO_QWEN, t5_tokenizer=DEMO_T5_TOKENIZER
)


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_concept_is_seen_where_it_is_painted_and_nowhere_else(name: str) -> None:
    concept, rng = CONCEPTS[name], np.random.default_rng(8)
    shown = [concept.paint(concept.draw(rng), SQUARE, rng) for _ in range(40)]
    others = [paint(draw_scene(rng), SQUARE, rng) for _ in range(80)]

    assert sum(map(concept.is_in, shown)) >= 38
    assert sum(map(concept.is_in, others)) <= 1


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_concepts_caption_has_its_trigger_and_says_where_it_is(name: str) -> None:
    concept = CONCEPTS[name]
    scene = concept.draw(np.random.default_rng(0))

    text = concept.caption(scene)

    assert concept.trigger in text
    # What the trigger says is not said in other words.
    assert not any(word in text for word in ("orange", "monochrome"))
    assert all(word in text for word in (scene.place, scene.time, scene.weather))


def test_a_model_that_draws_what_is_asked_scores_high_and_one_that_draws_noise_does_not() -> None:
    scenes = held_out_scenes(6, seed=1)
    rng = np.random.default_rng(0)
    painted = [paint(scene, SQUARE, rng) for scene in scenes]

    good = score(painted, scenes)
    # Of random weights.
    noise = score(draw_prompts(EMBEDDED, prompts_of(scenes)), scenes)

    assert good.share > 0.95
    assert noise.share < 0.5
    assert set(good.shares) == set(noise.shares)


def test_the_same_prompts_are_drawn_alike_each_time() -> None:
    prompts = prompts_of(held_out_scenes(1, seed=2))

    first, second = (draw_prompts(EMBEDDED, prompts)[0] for _ in range(2))

    assert first.tobytes() == second.tobytes()
