"""The caption rules: Kohya's texts, and what holds for every caption."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.errors import ConfigError
from anima_pipe.source.captions import CaptionRules, render_caption

CASES = json.loads((Path(__file__).parent / "data" / "kohya_captions.json").read_text())["cases"]
SEEDS = 400


def render(case, seed):
    rules = CaptionRules(**case["settings"])
    return render_caption(case["input"], rules, rng=Random(seed), **case["runtime"])


def render_with(raw, *, seed=0, epoch=1, **settings):
    return render_caption(raw, CaptionRules(**settings), rng=Random(seed), epoch=epoch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_seed_gives_kohyas_caption(case):
    expected = case["python_random_seed_to_output"]
    assert {seed: render(case, int(seed)) for seed in expected} == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_captions_come_as_often_as_kohyas(case):
    counts = Counter(render(case, seed) for seed in range(SEEDS))
    assert sorted(counts) == case["outputs"]
    # The reference's frequencies are rounded to three decimals.
    frequencies = {text: count / SEEDS for text, count in counts.items()}
    assert frequencies == pytest.approx(case["frequencies"], abs=0.0006)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_rules_that_do_not_vary_give_one_text(case):
    rules = CaptionRules(**case["settings"])
    assert rules.varies or len({render(case, seed) for seed in range(20)}) == 1


def test_caption_dropout_gives_the_empty_caption_at_its_rate():
    texts = [render_with("a, b", seed=seed, caption_dropout_rate=0.25) for seed in range(1000)]
    assert texts.count("") == pytest.approx(250, abs=45)
    assert set(texts) == {"", "a, b"}


def test_caption_dropout_leaves_neither_prefix_nor_suffix():
    assert not render_with("a", caption_dropout_rate=1, caption_prefix="P", caption_suffix="S")


def test_every_second_epoch_goes_without_captions():
    texts = [render_with("a", epoch=epoch, caption_dropout_every_n_epochs=2) for epoch in (1, 2)]
    assert texts == ["a", ""]


def test_without_dropout_keeps_the_other_rules():
    rules = CaptionRules(
        caption_dropout_rate=1.0, caption_dropout_every_n_epochs=1, caption_prefix="P"
    )
    assert render_caption("a", rules.without_dropout(), rng=Random(0), epoch=1) == "P a"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("caption_separator", ""),
        ("caption_tag_dropout_rate", 5),
        ("caption_dropout_rate", -0.1),
        ("caption_dropout_rate", float("nan")),
        ("keep_tokens", -1),
        ("token_warmup_min", -1),
        ("token_warmup_step", -0.5),
        ("caption_dropout_every_n_epochs", -2),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(ConfigError, match=setting):
        CaptionRules(**{setting: value})


TAGS = st.lists(st.text("abcdefgh _", min_size=1).map(str.strip).filter(bool), max_size=12)


@given(tags=TAGS, keep=st.integers(0, 14), seed=st.integers())
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(tags, keep, seed):
    text = render_with(", ".join(tags), seed=seed, shuffle_caption=True, keep_tokens=keep)
    shuffled = text.split(", ") if tags else []
    assert sorted(shuffled) == sorted(tags)
    assert shuffled[:keep] == tags[:keep]


@given(tags=TAGS, keep=st.integers(0, 4), rate=st.floats(0.01, 1), seed=st.integers())
def test_tag_dropout_only_leaves_tags_out(tags, keep, rate, seed):
    settings = {"caption_tag_dropout_rate": rate, "keep_tokens": keep}
    left = render_with(", ".join(tags), seed=seed, **settings).split(", ")
    rest = iter(tags)
    assert all(tag in rest for tag in left if tag), "the order is the caption's"
    assert left[:keep] == (tags[:keep] or [""] * bool(keep))


@given(count=st.integers(1, 30), least=st.integers(0, 40), warmup=st.integers(1, 50))
def test_the_warmup_never_takes_tags_away_again(count, least, warmup):
    rules = CaptionRules(token_warmup_step=warmup, token_warmup_min=least)
    raw = ", ".join(f"t{index}" for index in range(count))
    texts = [render_caption(raw, rules, rng=Random(0), step=step) for step in range(warmup + 1)]
    lengths = [len(text.split(", ")) if text else 0 for text in texts]
    assert lengths == sorted(lengths)
    assert lengths[0] == min(least, count)
    assert texts[-1] == raw


@given(raw=st.text())
def test_a_caption_of_one_line_is_left_alone_without_rules(raw):
    one_line = raw.replace("\n", " ")
    assert render_with(one_line) == one_line


BEFORE = "masterpiece, best quality, highres, year 2025, safe, 1girl, lum, urusei yatsura, @moko"
SENTENCES = "A fox girl sits, smiling, in the snow. She wears a scarf, a red one."


def sections(caption: str, seed: int = 0, **rules: object) -> str:
    kept = CaptionRules(shuffle_caption=True, keep_sections=True, **rules)
    return render_caption(caption, kept, rng=Random(seed))


@pytest.mark.parametrize("seed", range(5))
def test_sections_and_sentences_stay_in_place_while_general_tags_are_shuffled(seed):
    general = [f"tag {number}" for number in range(8)]
    text = sections(f"{BEFORE}, {', '.join(general)}. {SENTENCES}", seed)
    assert text.startswith(f"{BEFORE}, tag ")
    assert text.endswith(f". {SENTENCES}")
    shuffled = text.removeprefix(f"{BEFORE}, ").removesuffix(f". {SENTENCES}").split(", ")
    assert sorted(shuffled) == general
    assert shuffled != general


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("masterpiece, score_7_up, 2girls, a, b, c", "masterpiece, score_7_up, 2girls"),
        ("1girl, @one, @two, a, b, c", "1girl, @one, @two"),
        ("newest, explicit, multiple boys, a, 1girl, b", "newest, explicit, multiple boys"),
        ("best_quality, rating:safe, no_humans, a, b, c", "best_quality, rating:safe, no_humans"),
        ("(masterpiece:1.2), ((1girl)), [solo], a, b, c", "(masterpiece:1.2), ((1girl)), [solo]"),
        ("1girl, miku, (@one:1.1), a, @_@, b", "1girl, miku, (@one:1.1)"),
    ],
)
def test_known_tags_at_the_start_and_artists_are_kept(caption, kept):
    seen = {sections(caption, seed) for seed in range(20)}
    assert len(seen) > 1
    assert all(text.startswith(f"{kept}, ") for text in seen)


def test_a_full_stop_within_a_tag_does_not_begin_a_sentence():
    seen = {sections("@moko, dr. stone, no. 6, st. louis", seed) for seed in range(30)}
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("tags", "sentences"),
    [
        ("1girl, a, b, c", ". a girl stands under a tree, smiling"),
        ("1girl, a, b, c", ". Девушка стоит, улыбаясь."),
        ("1girl, a, b, c", ", The girl is standing under a tree, looking away"),
        ("1girl, a, b, c", "."),
        ("1girl, The Legend of Zelda, a, ...", ""),
    ],
)
def test_what_ends_the_tags_stays_behind_them(tags: str, sentences: str):
    seen = {sections(f"{tags}{sentences}", seed) for seed in range(40)}
    assert len(seen) == 6
    for text in seen:
        assert text.startswith("1girl, ")
        assert text.endswith(sentences)
        assert sorted(text.removesuffix(sentences).split(", ")) == sorted(tags.split(", "))


def test_a_caption_of_sentences_alone_is_left_alone():
    text = "A girl stands under a tree, smiling, wind in her hair. She waves, happily."
    assert {sections(text, seed) for seed in range(20)} == {text}


def test_keep_tokens_can_keep_more_than_the_sections():
    seen = {sections("1girl, lum, a, b, c", seed, keep_tokens=2) for seed in range(20)}
    assert all(text.startswith("1girl, lum, ") for text in seen)


SINGER = (
    "masterpiece, best quality, score_8, highres, year 2024, safe, 1girl, hatsune miku, vocaloid, "
    "@wlop, long hair, twintails, aqua eyes, smile"
)
ELVES = (
    r"score_9, newest, explicit, 2girls, frieren, fern \(sousou no frieren\), @a, @b, @c, "
    "forest, staff, elf"
)


@pytest.mark.parametrize(
    ("tags_alone", "general", "behind"),
    [
        (SINGER, 4, ". She sings on a stage, under blue light. The crowd is dark."),
        (ELVES, 3, '. "Look," says Frieren, pointing.'),
        ("year 2025, official art, nsfw, no humans, cat, window, rain", 3, ""),
        ("worst quality, anime screenshot, 1boy, dr. stone, st. louis, hat", 3, ""),
    ],
)
def test_captions_in_animas_order_are_shuffled_between_their_sections_only(
    tags_alone: str, general: int, behind: str
):
    tags = tags_alone.split(", ")
    seen = {sections(f"{tags_alone}{behind}", seed) for seed in range(40)}
    assert len(seen) > 2
    for text in seen:
        assert text.endswith(behind)
        found = text.removesuffix(behind).split(", ")
        assert found[:-general] == tags[:-general]
        assert sorted(found[-general:]) == sorted(tags[-general:])


def test_tags_held_together_stay_so_among_the_general_ones():
    caption = "1girl, @moko, red hat;;;blue coat, a, b, c. She waits."
    seen = {sections(caption, seed, secondary_separator=";;;") for seed in range(40)}
    assert len(seen) > 5
    assert all("red hat,blue coat" in text and text.endswith(". She waits.") for text in seen)


def test_marks_set_the_free_tags_and_sentences_stay_behind_all_of_them():
    caption = "1girl, lum, urusei yatsura ||| a, b, c ||| best quality. She waits, smiling."
    seen = {sections(caption, seed, keep_tokens_separator="|||") for seed in range(40)}
    assert len(seen) == 6
    for text in seen:
        assert text.startswith("1girl, lum, urusei yatsura, ")
        assert text.endswith(", best quality. She waits, smiling.")


def test_dropped_general_tags_leave_sections_and_sentences():
    rules = {"caption_tag_dropout_rate": 1.0}
    assert sections(f"@moko, a, b. {SENTENCES}", **rules) == f"@moko. {SENTENCES}"
    assert sections(f"a, b. {SENTENCES}", **rules) == SENTENCES
