"""Which pictures are trained, how often and in which order."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.picture_captions import PictureTexts, uncaptioned
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import Plan, describe, make_plan
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.errors import CacheError, DataError
from anima_pipe.shards.keys import text_key
from anima_pipe.source.captions import CaptionRules

RULES = BucketRules(
    resolution=(64, 64), min_bucket_reso=32, max_bucket_reso=128, bucket_reso_steps=16
)
SIZES = [(64, 64), (64, 64), (96, 48), (48, 96), (60, 66)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}, a, b, c", encoding="utf-8")
    return tmp_path


def dataset(folder: Path, batch_size: int = 2, **subset: object) -> DatasetConfig:
    return DatasetConfig(
        subsets=(SubsetConfig(image_dir=folder, **subset),), buckets=RULES, batch_size=batch_size
    )


def surveyed(*datasets: DatasetConfig, crop_variants: int = 1) -> Survey:
    pictures = find_pictures(datasets)
    return survey_pictures(pictures, caption_variants=None, crop_variants=crop_variants)


def planned(*datasets: DatasetConfig, seed: int = 0) -> Plan:
    return planned_of(surveyed(*datasets), seed)


def planned_of(survey: Survey, seed: int = 0) -> Plan:
    texts = [text_key(caption) for caption in survey.captions]
    return make_plan(survey, survey.latents, texts, seed=seed)


def test_every_picture_is_visited_as_often_as_its_repeats_say(folder):
    plan = planned(dataset(folder, num_repeats=3))
    visits = Counter(visit.name for batch in plan.epoch(0) for visit in batch)
    assert visits == {f"{number}.png": 3 for number in range(len(SIZES))}


def test_a_batch_holds_pictures_of_one_bucket(folder):
    plan = planned(dataset(folder, num_repeats=2))
    bucket = {sample.name: sample.group for sample in plan.samples}
    assert len(set(bucket.values())) > 2
    for batch in plan.epoch(0):
        assert len({bucket[visit.name] for visit in batch}) == 1


def test_the_plan_counts_captions_over_the_token_limit(folder):
    survey = surveyed(dataset(folder))
    texts = [text_key(caption) for caption in survey.captions]
    plan = make_plan(survey, survey.latents, texts, seed=0, long_texts={texts[2], "of others"})
    assert "captions    5 variants, 1 over 512 T5 tokens" in describe(plan)
    assert "captions    5 variants" in describe(planned_of(survey))


def test_datasets_do_not_share_batches(folder):
    coarse = dataset(folder, batch_size=4)
    plan = planned(dataset(folder, batch_size=1), coarse)
    sizes = Counter(len(batch) for batch in plan.epoch(0))
    assert sizes[1] >= len(SIZES)
    assert max(sizes) > 1
    assert sum(size * count for size, count in sizes.items()) == 2 * len(SIZES)


def test_the_order_is_a_function_of_seed_and_epoch_alone(folder):
    plan, again, other = (planned(dataset(folder, num_repeats=4), seed=s) for s in (1, 1, 2))
    assert plan.epoch(3) == again.epoch(3)
    assert plan.epoch(3) != plan.epoch(4)
    assert plan.epoch(3) != other.epoch(3)


def test_the_captions_of_a_shuffled_subset_vary_between_visits(folder):
    shuffled = dataset(folder, captions=CaptionRules(shuffle_caption=True))
    plan = planned(shuffled)
    assert min(len(sample.texts) for sample in plan.samples) > 1
    seen = {v.text for e in range(8) for batch in plan.epoch(e) for v in batch if v.name == "0.png"}
    assert len(seen) > 2


def test_a_mirrored_picture_has_two_latents_and_both_are_drawn(folder):
    plan = planned(dataset(folder, flip_aug=True))
    assert all(len(sample.latents) == 2 for sample in plan.samples)
    seen = {v.latent for e in range(16) for batch in plan.epoch(e) for v in batch}
    assert seen == {key for sample in plan.samples for key in sample.latents}


def test_a_picture_cropped_at_random_has_several_latents_of_its_bucket_and_all_are_drawn(folder):
    survey = surveyed(dataset(folder, random_crop=True), crop_variants=4)
    tall = next(sample for sample in survey.samples if sample.picture.path.name == "4.png")
    crops = [survey.latents[key].choice for key in tall.latent_keys]
    assert len({choice.crop for choice in crops}) == len(crops) > 1
    for choice in crops:
        assert (choice.bucket, choice.resized) == (tall.choice.bucket, tall.choice.resized)
        for start, part, whole in zip(choice.crop, choice.bucket, choice.resized, strict=True):
            assert 0 <= start <= whole - part
    plan = planned_of(survey)
    seen = {v.latent for e in range(40) for batch in plan.epoch(e) for v in batch}
    assert seen == set(survey.latents)
    assert "random crops" in "\n".join(describe(plan))
    assert "mirrored" not in "\n".join(describe(plan))


def test_more_crops_need_only_the_new_ones_encoded(folder):
    few, many = (
        set(surveyed(dataset(folder, random_crop=True), crop_variants=n).latents) for n in (2, 5)
    )
    assert few < many


def test_a_picture_of_which_nothing_is_cut_off_has_one_crop(folder):
    survey = surveyed(dataset(folder, random_crop=True), crop_variants=4)
    square = next(sample for sample in survey.samples if sample.picture.path.name == "0.png")
    assert square.latent_keys == surveyed(dataset(folder)).samples[0].latent_keys


def test_crops_are_mirrored_too(folder):
    survey = surveyed(dataset(folder, random_crop=True, flip_aug=True), crop_variants=3)
    requests = list(survey.latents.values())
    assert {(r.choice.crop, r.image.path) for r in requests if r.flipped} == {
        (r.choice.crop, r.image.path) for r in requests if not r.flipped
    }
    text = "\n".join(describe(planned_of(survey)))
    assert "5 also mirrored" in text


def test_every_visit_carries_the_loss_weight_of_its_subset(folder):
    plan = planned(dataset(folder, loss_weight=0.25), dataset(folder, batch_size=1))
    weights = Counter(visit.loss_weight for batch in plan.epoch(0) for visit in batch)
    assert weights == {0.25: len(SIZES), 1.0: len(SIZES)}


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_captions_are_dropped_at_their_rate_when_drawn_and_not_in_the_cache(folder, rate):
    rules = CaptionRules(caption_dropout_rate=rate)
    plan = planned(dataset(folder, num_repeats=200, captions=rules))
    texts = [visit.text for batch in plan.epoch(0) for visit in batch]
    assert texts.count(EMPTY_CAPTION) / len(texts) == pytest.approx(rate, abs=0.05)
    assert plan.samples[0].texts == (text_key("picture 0, a, b, c"),)


def test_every_nth_epoch_can_go_without_captions(folder):
    rules = CaptionRules(caption_dropout_every_n_epochs=3)
    plan = planned(dataset(folder, captions=rules))
    dropped = [
        {visit.text for batch in plan.epoch(epoch) for visit in batch} == {EMPTY_CAPTION}
        for epoch in range(6)
    ]
    assert dropped == [False, False, True, False, False, True]


def test_what_is_missing_from_a_cache_is_counted_and_named(folder):
    survey = surveyed(dataset(folder))
    texts = [text_key(caption) for caption in survey.captions]
    some = [key for s in survey.samples if s.picture.path.name != "2.png" for key in s.latent_keys]
    with pytest.raises(CacheError, match=r"1 of 5 images have no cached latents: 2\.png"):
        make_plan(survey, some, texts, seed=0)
    with pytest.raises(CacheError, match="5 of 5 images have no cached text"):
        make_plan(survey, survey.latents, [], seed=0)
    with pytest.raises(CacheError, match="empty caption"):
        make_plan(survey, survey.latents, texts[1:], seed=0)


def test_the_plan_says_what_will_be_trained(folder):
    text = "\n".join(describe(planned(dataset(folder, num_repeats=2, flip_aug=True))))
    assert "5, 10 visits per epoch, 5 also mirrored" in text
    assert "64x64 (3)" in text


def test_an_unreadable_picture_is_left_out_and_named(folder):
    (folder / "9.png").write_bytes(b"no picture")
    survey = surveyed(dataset(folder))
    assert len(survey.samples) == len(SIZES)
    assert [Path(item.name).name for item in survey.skipped] == ["9.png"]


def test_nothing_but_unreadable_pictures_is_an_error(tmp_path):
    (tmp_path / "9.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 1 picture"):
        surveyed(dataset(tmp_path))


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        find_pictures([dataset(tmp_path)])


def test_a_picture_without_a_caption_is_trained_with_the_empty_one_and_named(folder):
    (folder / "3.txt").unlink()
    pictures = find_pictures([dataset(folder)])
    assert [Path(item.name).name for item in uncaptioned(pictures)] == ["3.png"]
    sample = next(s for s in surveyed(dataset(folder)).samples if s.image.path.name == "3.png")
    assert sample.captions.full == ("",)


def test_class_tokens_stand_in_for_captions(folder):
    (folder / "3.txt").unlink()
    configured = dataset(folder, class_tokens="a fox")
    assert uncaptioned(find_pictures([configured])) == []
    assert "a fox" in surveyed(configured).captions


def test_a_folder_without_any_captions_is_an_error_that_names_the_ending(folder):
    configured = dataset(folder, caption_extension=".caption")
    with pytest.raises(DataError, match=r"\.caption"):
        uncaptioned(find_pictures([configured]))


def test_the_text_stage_asks_for_the_texts_that_training_draws(folder):
    configured = dataset(folder, captions=CaptionRules(shuffle_caption=True, keep_tokens=1))
    texts = PictureTexts(find_pictures([configured]), caption_variants=None)
    assert set(texts) == set(surveyed(configured).captions)
    assert "" in texts
    assert texts.skipped == ()


def test_changing_repeats_and_rates_needs_no_other_keys(folder):
    before = surveyed(dataset(folder))
    rules = CaptionRules(caption_dropout_rate=0.5)
    after = surveyed(dataset(folder, num_repeats=9, captions=rules, batch_size=1))
    assert before.latents == after.latents
    assert before.captions == after.captions


@pytest.mark.parametrize("rules", [{}, {"shuffle_caption": True}, {"token_warmup_step": 10}])
def test_another_rate_of_dropped_tags_needs_no_other_texts(folder, rules):
    few, many = (
        surveyed(dataset(folder, captions=CaptionRules(caption_tag_dropout_rate=rate, **rules)))
        for rate in (0.05, 0.6)
    )
    assert set(few.captions) == set(many.captions)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9, 1.0])
def test_tags_are_left_out_at_their_rate_over_all_visits(tmp_path, rate):
    caption = ", ".join(f"tag {number}" for number in range(20))
    for number in range(40):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}, {caption}")
    rules = CaptionRules(shuffle_caption=True, keep_tokens=1, caption_tag_dropout_rate=rate)
    survey = surveyed(dataset(tmp_path, num_repeats=100, captions=rules))
    texts = {text_key(text): text for text in survey.captions}
    drawn = [texts[visit.text] for batch in planned_of(survey).epoch(0) for visit in batch]
    assert all(text.startswith("picture ") for text in drawn)
    kept = sum(text.count("tag ") for text in drawn) / (20 * len(drawn))
    assert kept == pytest.approx(1 - rate, abs=0.03)


def test_a_text_that_several_variants_share_is_drawn_as_often_as_all_of_them(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("{fox|fox|fox|fox|fox|fox|fox|fox|fox|wolf}")
    rules = CaptionRules(enable_wildcard=True)
    configured = dataset(tmp_path, num_repeats=2000, captions=rules)
    survey = survey_pictures(find_pictures([configured]), caption_variants=100)
    drawn = [visit.text for batch in planned_of(survey).epoch(0) for visit in batch]
    assert 0.8 < drawn.count(text_key("fox")) / len(drawn) < 0.98


def test_a_renamed_picture_keeps_its_latent(folder):
    before = set(surveyed(dataset(folder)).latents)
    (folder / "0.png").rename(folder / "zero.png")
    (folder / "0.txt").rename(folder / "zero.txt")
    assert set(surveyed(dataset(folder)).latents) == before


samples = st.builds(
    PlannedSample,
    name=st.uuids().map(str),
    latents=st.just(("latent",)),
    texts=st.just(("text",)),
    group=st.tuples(st.just(0), st.sampled_from([64, 96]), st.sampled_from([64, 96])),
    batch_size=st.just(3),
    repeats=st.integers(1, 5),
    dropout_rate=st.just(0.0),
    dropout_every_n_epochs=st.just(0),
)


@given(st.lists(samples, min_size=1, max_size=20), st.integers(0, 5))
def test_an_epoch_has_the_promised_number_of_batches_and_visits(members, epoch):
    plan = Plan(samples=tuple(members), seed=0)
    batches = plan.epoch(epoch)
    assert len(batches) == plan.batches_per_epoch()
    assert sum(map(len, batches)) == sum(sample.repeats for sample in members)
    assert all(1 <= len(batch) <= 3 for batch in batches)


def test_a_plan_of_one_sample_repeats_it(folder):
    plan = planned(dataset(folder))
    alone = replace(plan, samples=plan.samples[:1])
    assert [len(batch) for batch in alone.epoch(0)] == [1]


def test_a_plan_is_known_by_what_is_trained_whatever_it_is_called_and_wherever_it_is():
    samples = tuple(
        PlannedSample(
            name=f"{number}.png",
            folder=Path("pictures"),
            latents=(f"latent{number}", f"mirrored{number}"),
            texts=(f"text{number}",),
            group=(0, 64, 96),
            batch_size=2,
            repeats=number + 1,
            dropout_rate=0.1,
            dropout_every_n_epochs=0,
            masks=(f"mask{number}",),
        )
        for number in range(3)
    )

    # States have it: another number for the same plan, and none of them could be gone on from.
    assert Plan(samples=samples, seed=1).digest() == "6a275fd2fd9af67a"
    moved = tuple(replace(sample, name="fox.png", folder=Path("moved")) for sample in samples)
    assert Plan(samples=moved, seed=1).digest() == "6a275fd2fd9af67a"
    for other in (samples[:2], samples[::-1], (replace(samples[0], repeats=7), *samples[1:])):
        assert Plan(samples=other, seed=1).digest() != "6a275fd2fd9af67a"
