"""What is kept of every picture while its dataset is cached."""

import gc
import os
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from typing import TypeVar

import pytest
import torch
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.picture_captions import PictureTexts
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.shards import MaskWriter
from anima_pipe.shards.contents import held_in
from anima_pipe.shards.folders import MASK_CACHE
from anima_pipe.shards.keys import text_key
from anima_pipe.shards.packed_keys import KeyPlaces, PackedKeys

Made = TypeVar("Made")

PICTURES = 1000
LONG_AGO = 1_600_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    encoded = BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, "PNG")
    for number in range(PICTURES):
        path = folder / f"{number:05}.png"
        path.write_bytes(encoded.getvalue() + b"%d" % number)  # what stands behind is not decoded
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def surveyed(folder, cache_dir, **rules) -> Survey:
    subset = SubsetConfig(image_dir=folder, **rules)
    dataset = DatasetConfig(subsets=(subset,), buckets=BucketRules(resolution=(256, 256)))
    return survey_pictures(find_pictures([dataset]), caption_variants=0, cache_dir=cache_dir)


def kept(make: Callable[[], Made]) -> tuple[Made, float]:
    """Return what is made, and how many bytes are kept of it per picture.

    The lesser of two times: within one of them the interpreter's own table of strings may grow,
    by some megabytes at once.
    """
    (_, first), (made, second) = _kept_once(make), _kept_once(make)
    return made, min(first, second)


def _kept_once(make: Callable[[], Made]) -> tuple[Made, float]:
    tracemalloc.start()
    made = make()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, kept / PICTURES


@pytest.mark.parametrize(("rules", "limit"), [({}, 180), ({"flip_aug": True}, 240)])
def test_a_survey_keeps_a_few_numbers_of_a_picture(folder, tmp_path, rules, limit):
    surveyed(folder, tmp_path)  # what is imported and remembered by then does not count
    survey, per_picture = kept(lambda: surveyed(folder, tmp_path, **rules))
    assert len(survey.samples) == PICTURES
    assert per_picture < limit


def test_what_is_missing_is_told_from_a_few_bytes_per_sample(tmp_path):
    with MaskWriter(tmp_path) as writer:
        for number in range(PICTURES):
            writer.add(f"{number:032x}", torch.zeros(2, 2), {})
    held_in(tmp_path, "masks", MASK_CACHE)
    held, per_sample = kept(lambda: held_in(tmp_path, "masks", MASK_CACHE))
    assert f"{PICTURES - 1:032x}" in held.keys
    assert f"{PICTURES:032x}" not in held.keys
    assert per_sample < 40


def test_texts_are_read_on_their_way_and_not_kept(folder, tmp_path):
    subset = SubsetConfig(image_dir=folder, class_tokens="a fox in the snow " * 50)
    dataset = DatasetConfig(subsets=(subset,), buckets=BucketRules(resolution=(256, 256)))
    texts = PictureTexts(find_pictures([dataset]), caption_variants=1)
    list(texts)
    places, per_picture = kept(lambda: KeyPlaces(PackedKeys(map(text_key, texts))))
    assert len(places) == 2  # the empty one is another
    assert per_picture < 40


def test_a_request_is_the_same_whenever_it_is_asked_for(folder, tmp_path):
    survey = surveyed(folder, tmp_path, flip_aug=True, random_crop=True)
    requests = dict(survey.latents)
    assert [request.key for request in requests.values()] == list(requests)
    assert requests == {one.key: one for sample in survey.samples for one in sample.latents()}
    assert len(requests) == 2 * PICTURES
