"""Captions in JSON beside the pictures, as other tools for Anima write them."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.picture_captions import picture_captions
from anima_pipe.dataset.pictures import Picture
from anima_pipe.errors import DataError
from anima_pipe.source.captions import CaptionRules
from anima_pipe.source.json_captions import GroupedCaption, parse_json_caption

SIMPLE = {
    "quality": "newest, safe",
    "count": "1girl",
    "character": "hatsune miku",
    "series": "vocaloid",
    "artist": "@wlop",
    "appearance": ["long hair", "blue hair"],
    "tags": ["singing", "microphone", "concert"],
    "environment": ["stage", "night"],
    "nl": "Miku performs on stage, energetically.",
}
WHOLE = {
    "fixed": {"quality": "newest", "series": "a project", "artist": "@someone"},
    "character": {"name": "a fox", "variant": ""},
    "from_path": {"appearance": ["blonde hair"]},
    "ai_output": {
        "count": "1girl",
        "appearance": ["long hair", "blonde hair"],
        "tags": ["standing"],
        "environment": ["outdoors"],
        "nl": "A girl stands.",
    },
}
PLAIN = CaptionRules()


def render(content: Any, rules: CaptionRules = PLAIN, seed: int = 0) -> str:
    caption = parse_json_caption(json.dumps(content), "a.json")
    return caption if isinstance(caption, str) else caption.render(rules, Random(seed))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            SIMPLE,
            (
                "newest, safe, 1girl, hatsune miku, vocaloid, @wlop, long hair, blue hair, "
                "singing, microphone, concert, stage, night. "
                "Miku performs on stage, energetically."
            ),
        ),
        (
            WHOLE,
            (
                "newest, 1girl, a fox, a project, @someone, blonde hair, long hair, standing, "
                "outdoors. A girl stands."
            ),
        ),
        # What the user of a tag editor left stands for all categories.
        ({**WHOLE, "tags": ["a fox", "snow"]}, "a fox, snow. A girl stands."),
        ({"tags": ["fox", "snow"], "meta": {"trigger": "sks"}}, "sks, fox, snow"),
        ({"tags": "fox, snow", "nl": ""}, "fox, snow"),
        ({"nl": "A fox\n in snow."}, "A fox in snow."),
        ({"caption": " a fox ", "tags": ["snow"]}, "a fox, snow"),
        ("a fox", "a fox"),
    ],
)
def test_fields_stand_in_the_order_that_their_tools_write_down(content: Any, text: str):
    assert render(content) == text


def test_tags_change_places_within_their_category_alone():
    rules = CaptionRules(shuffle_caption=True)
    texts = {render(SIMPLE, rules, seed) for seed in range(400)}

    assert len(texts) == 2 * 6 * 2
    for text in texts:
        tags, sentence = text.split(". ", maxsplit=1)
        parts = tags.split(", ")
        assert parts[:6] == ["newest", "safe", "1girl", "hatsune miku", "vocaloid", "@wlop"]
        assert sorted(parts[6:8]) == ["blue hair", "long hair"]
        assert sorted(parts[8:11]) == ["concert", "microphone", "singing"]
        assert sorted(parts[11:]) == ["night", "stage"]
        assert sentence == SIMPLE["nl"]


def test_only_tags_of_the_categories_are_dropped():
    rules = CaptionRules(caption_tag_dropout_rate=1.0)
    assert render(SIMPLE, rules) == (
        "newest, safe, 1girl, hatsune miku, vocaloid, @wlop. Miku performs on stage, energetically."
    )


def test_the_other_rules_act_as_on_any_caption():
    rules = CaptionRules(caption_prefix="sks", caption_suffix="end", secondary_separator=";;")
    assert render({"tags": ["a;;b", "c"]}, rules) == "sks a,b, c end"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"a\.json is not JSON"),
        ("[1]", r"a\.json holds no caption"),
        ('{"tag": ["a"]}', r"a\.json holds no caption"),
        ('{"tags": [], "nl": " "}', r"a\.json holds no caption"),
    ],
)
def test_a_file_without_a_caption_is_named(text: str, problem: str):
    with pytest.raises(DataError, match=problem):
        parse_json_caption(text, "a.json")


def picture(folder: Path, **subset: Any) -> Picture:
    config = SubsetConfig(image_dir=folder, caption_extension=".json", **subset)
    dataset = DatasetConfig(subsets=(config,), buckets=BucketRules(resolution=(512, 512)))
    return Picture(folder=folder, name="a.png", dataset=dataset, subset=config)


def test_caption_extension_json_reads_the_file_beside_the_picture(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(SIMPLE), encoding="utf-8")

    assert picture_captions(picture(tmp_path), None).full == (render(SIMPLE),)
    shuffled = picture(tmp_path, captions=CaptionRules(shuffle_caption=True))
    assert len(picture_captions(shuffled, 8).full) > 1
    assert picture_captions(shuffled, 8) == picture_captions(shuffled, 8)


def test_without_the_file_the_class_tokens_stand_in(tmp_path: Path):
    assert picture_captions(picture(tmp_path, class_tokens="fox"), None).full == ("fox",)


def test_a_grouped_caption_is_a_value():
    one, other = (parse_json_caption(json.dumps(SIMPLE), "a") for _ in range(2))
    assert isinstance(one, GroupedCaption)
    assert one == other
