"""token_warmup: captions that grow while training, from texts that were encoded before it."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest
import torch
from commands import Ended, anima_pipe, demo_pictures, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.plan import Plan, describe
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.records import TextCondition
from anima_pipe.source.captions import CaptionRules, render_caption, tags_shown
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.variants import (
    DEFAULT_VARIANTS,
    WARMUP_PARTS,
    WARMUP_VARIANTS,
    caption_texts,
)

RAW = ", ".join(f"tag {number}" for number in range(13))


def rules(steps: float, **settings: object) -> CaptionRules:
    return CaptionRules(token_warmup_step=steps, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("least", [0, 1, 5, 20])
@pytest.mark.parametrize("keep", [0, 2])
def test_the_number_of_tags_at_each_part_is_kohyas(least: int, keep: int):
    steps = 8 * WARMUP_PARTS
    growing = rules(steps, token_warmup_min=least, keep_tokens=keep)
    texts = caption_texts(RAW, growing, None)
    for part, rendered in enumerate(texts.warmup):
        step = part * steps // WARMUP_PARTS
        assert rendered == (render_caption(RAW, growing, rng=Random(0), step=step),)
    assert texts.full == (RAW,)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 500), st.floats(0, 1))
def test_within_a_part_the_number_is_at_most_an_eighth_behind_kohyas(
    count: int, least: int, steps: int, progress: float
):
    least = min(least, count)
    step = min(int(progress * steps), steps - 1)
    shown = tags_shown(
        count, rules(WARMUP_PARTS, token_warmup_min=least), step * WARMUP_PARTS // steps
    )
    kohyas = tags_shown(count, rules(steps, token_warmup_min=least), step)
    # Kohya's own division may round to one tag less.
    assert kohyas - (count - least) / WARMUP_PARTS - 1 <= shown <= kohyas + 1


def test_a_warmup_of_another_length_needs_no_other_texts():
    long, short = (set(caption_texts(RAW, rules(steps), None)) for steps in (1000, 0.25))
    assert long == short


def test_the_texts_of_a_shuffled_caption_are_bounded():
    texts = caption_texts(RAW * 10, rules(100, shuffle_caption=True), None)
    assert len(texts.full) == DEFAULT_VARIANTS
    assert len(set(texts)) <= DEFAULT_VARIANTS + WARMUP_PARTS * WARMUP_VARIANTS
    first = caption_texts(RAW, rules(100, shuffle_caption=True), None).warmup[0]
    assert first == ("tag 0",), "the first tags of the caption, whatever their order later"


def test_a_caption_by_category_shows_the_first_tags_of_all_categories():
    caption = GroupedCaption(
        fixed=("1girl", "@moko"), groups=(("a", "b"), ("c", "d", "e")), sentence="She sits."
    )
    texts = caption_texts(caption, rules(10, token_warmup_min=0), None)
    assert texts.warmup[0] == ("1girl, @moko. She sits.",)
    assert texts.warmup[5] == ("1girl, @moko, a, b, c. She sits.",)
    assert texts.full == ("1girl, @moko, a, b, c, d, e. She sits.",)


class _Texts:
    """A cache whose latents are empty and whose texts are as long as their keys say."""

    def __init__(self) -> None:
        self.latents = self.text = self

    def stacked(self, keys: list[str]) -> torch.Tensor:
        return torch.zeros(len(keys), 16, 2, 2)

    def __getitem__(self, key: str) -> TextCondition:
        length = 0 if key == EMPTY_CAPTION else int(key)
        return TextCondition(torch.zeros(length, 4), torch.ones(1, dtype=torch.int32))


def lengths(warmup: float, count: int, start: int = 0, *, dropout: float = 0.0) -> list[int]:
    """Tokens of the caption at each step; full it has 100, in the parts of a warmup 0 to 7."""
    sample = PlannedSample(
        name="fox",
        latents=("latent",),
        texts=("100",),
        warmup=tuple((str(part),) for part in range(WARMUP_PARTS)),
        warmup_length=warmup,
        group=(0, 16, 16),
        batch_size=1,
        repeats=3,
        dropout_rate=dropout,
        dropout_every_n_epochs=0,
    )
    plan = Plan(samples=(sample,), seed=1)
    assert any(line.startswith("tag warmup  of 1 image, over ") for line in describe(plan))
    supply = Batches(plan=plan, cache=_Texts(), max_train_steps=40)  # pyright: ignore[reportArgumentType]
    windows = itertools.islice(supply.starting_at(start), count)
    return [int(window.micro_batches[0].batch.text.qwen_mask.sum()) for window in windows]


def test_captions_grow_with_the_steps_across_epochs():
    assert lengths(16, 18) == [part for part in range(8) for _ in (0, 1)] + [100, 100]
    assert lengths(4, 5) == [0, 2, 4, 6, 100]


def test_a_warmup_may_be_a_share_of_the_run():
    assert lengths(0.2, 9) == [*range(8), 100]


def test_a_resumed_run_shows_what_one_in_one_go_shows():
    assert lengths(30, 9, start=11) == lengths(30, 20)[11:]


def test_dropped_captions_stay_dropped():
    assert lengths(30, 12, dropout=1.0) == [0] * 12


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("growing")
    pictures = demo_pictures(folder / "pictures", every=18)
    return {
        "dataset_config": write_dataset(folder / "dataset.toml", pictures, shuffle_caption=True),
        "cache_dir": folder / "cache",
        "train_norm": False,
    }


def train(options: dict[str, object], folder: Path, **values: object) -> Ended:
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **options, **values).ok()


def losses(ended: Ended) -> tuple[float, float]:
    assert ended.summary is not None
    return ended.summary["first_loss"], ended.summary["final_loss"]


def test_a_run_shows_more_tags_step_by_step(growing: dict[str, object], tmp_path: Path):
    plain = train(growing, tmp_path / "plain")
    slow = train(growing, tmp_path / "slow", token_warmup_step=2)
    over = train(growing, tmp_path / "over", token_warmup_step=0.01)
    assert "over 2 steps" in slow.said
    assert losses(slow) != losses(plain)
    assert losses(over) == losses(plain), "a hundredth of two steps is none"
