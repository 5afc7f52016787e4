"""What tells how well a model draws: by the world's rules, and whether the demo's fox is there."""

from __future__ import annotations

import numpy as np

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE
from anima_pipe.demo.world.character import (
    TRIGGER,
    WITH_FOX,
    draw_fox_scene,
    fox_caption,
    look_for_fox,
)
from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import draw_scene
from anima_pipe.evaluation.prompts import ModelFiles, draw_prompts
from anima_pipe.evaluation.world import held_out_scenes, prompts_of, score

SQUARE = (128, 128)
EMBEDDED = ModelFiles(
    transformer=DEMO_TRANSFORMER, vae=DEMO_VAE, qwen=DEMO_QWEN, t5_tokenizer=DEMO_T5_TOKENIZER
)


def test_the_fox_is_seen_where_it_is_painted_and_nowhere_else() -> None:
    rng = np.random.default_rng(8)
    foxes = [paint(draw_fox_scene(rng), SQUARE, rng, WITH_FOX) for _ in range(40)]
    others = [paint(draw_scene(rng), SQUARE, rng) for _ in range(80)]

    assert sum(look_for_fox(picture).is_fox for picture in foxes) >= 38
    assert not any(look_for_fox(picture).is_fox for picture in others)


def test_the_foxs_caption_has_its_trigger_and_says_where_it_is() -> None:
    scene = draw_fox_scene(np.random.default_rng(0))

    text = fox_caption(scene)

    assert f"{TRIGGER}, solo, fox, " in text
    assert "orange" not in text
    assert all(name in text for name in (scene.side, scene.place, scene.time, scene.weather))


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
