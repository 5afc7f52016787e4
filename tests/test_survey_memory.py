"""What is kept of every picture while its dataset is cached."""

import os
import tracemalloc
from io import BytesIO

import pytest
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.survey import Survey, find_pictures, survey_pictures

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


@pytest.mark.parametrize(("rules", "limit"), [({}, 700), ({"flip_aug": True}, 900)])
def test_a_survey_keeps_less_than_a_kilobyte_of_a_picture(folder, tmp_path, rules, limit):
    surveyed(folder, tmp_path)
    tracemalloc.start()
    survey = surveyed(folder, tmp_path, **rules)
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    # Not what the interpreter has of its own, such as its table of interned names.
    ours = [tracemalloc.Filter(True, pattern) for pattern in ("*anima_pipe*", "*json*")]
    kept = sum(one.size for one in snapshot.filter_traces(ours).statistics("filename"))
    assert len(survey.samples) == PICTURES
    assert kept < limit * PICTURES


def test_a_request_is_the_same_whenever_it_is_asked_for(folder, tmp_path):
    survey = surveyed(folder, tmp_path, flip_aug=True, random_crop=True)
    requests = dict(survey.latents)
    assert [request.key for request in requests.values()] == list(requests)
    assert requests == {one.key: one for sample in survey.samples for one in sample.latents()}
    assert len(requests) == 2 * PICTURES
