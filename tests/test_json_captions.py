"""Captions in JSON beside the pictures, as other tools for Anima write them."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from anima_pipe.buckets import BucketRules
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig
from anima_pipe.dataset.picture_captions import PictureTexts, picture_captions
from anima_pipe.dataset.pictures import Picture, find_pictures
from anima_pipe.dataset.survey import survey_pictures
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
RENDERED_WHOLE = (
    "newest, 1girl, a fox, a project, @someone, blonde hair, long hair, standing, outdoors. "
    "A girl stands."
)
STANDARD = {
    "meta": {"path": "kit/1.png", "source_path_parts": ["kit"]},
    "tags": {
        "quality": ["newest", "safe"],
        "count": "1girl",
        "character": "kit",
        "series": "foxes",
        "artist": "@ann",
        "appearance": ["red hair", "blue eyes"],
        "tags": ["smile", "hat"],
        "environment": ["night"],
        "nl": "She smiles.",
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
        (WHOLE, RENDERED_WHOLE),
        # What the user of a tag editor left stands for all categories.
        ({**WHOLE, "tags": ["a fox", "snow"]}, "a fox, snow. A girl stands."),
        ({"tags": ["fox", "snow"], "meta": {"trigger": "sks"}}, "sks, fox, snow"),
        ({"tags": "fox, snow", "nl": ""}, "fox, snow"),
        ({"nl": "A fox\n in snow."}, "A fox in snow."),
        ({"caption": " a fox ", "tags": ["snow"]}, "a fox, snow"),
        ("a fox", "a fox"),
        (
            STANDARD,
            (
                "newest, safe, 1girl, kit, foxes, @ann, red hair, blue eyes, smile, hat, night. "
                "She smiles."
            ),
        ),
        # Repeats, in whichever fields and case; the trigger is first, whatever else it is.
        ({"tags": ["fox", "Sks", "snow"], "meta": {"trigger": "sks"}}, "sks, fox, snow"),
        (
            {"appearance": ["blue eyes"], "tags": ["smile", "Blue Eyes"], "environment": ["Smile"]},
            "blue eyes, smile",
        ),
        ({"artist": "@ann", "character": "Kit", "tags": "kit, @Ann, hat"}, "Kit, @ann, hat"),
        (
            {"caption": "a fox, sks", "tags": ["A fox", "hat"], "meta": {"trigger": "SKS"}},
            "SKS, a fox, hat",
        ),
        # What the folders' names add, and characters that say their whole name.
        (
            {
                "from_path": {"appearance": ["hat"], "extra_appearance": "scarf, HAT"},
                "ai_output": {"appearance": ["red hair"], "tags": ["smile"]},
                "character": {"name": "kit", "variant": "winter", "full": "kit (winter)"},
            },
            "kit (winter), hat, scarf, red hair, smile",
        ),
        ({"from_path": {"extra_tags": ["hat"]}, "ai_output": {"tags": ["smile"]}}, "hat, smile"),
        ({"character": [{"name": "kit"}, "ann"], "tags": []}, "kit, ann"),
        # Nothing is edited yet.
        ({**WHOLE, "tags": []}, RENDERED_WHOLE),
        ({**WHOLE, "path": "a/b.png", "path_parts": ["a"], "score": 0.5}, RENDERED_WHOLE),
        # A caption is one line.
        ({"caption": "a fox\nin snow", "tags": ["red\nhat"]}, "a fox in snow, red hat"),
        ({"tags": ["one\u2028two"]}, "one\u2028two"),
        # A text of a list may hold several tags, as it will in the caption.
        ({"tags": ["smile, hat", "Hat"], "environment": ["night,smile"]}, "smile, hat, night"),
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"tags": ["a"], "mood": "sad"}, "field mood holds text that nobody reads"),
        ({"tags": {"tags": ["a"], "pose": ["sits"]}}, r"field tags\.pose holds text"),
        (
            {"meta": {}, "tags": {"tags": {"x": ["a"]}}},
            r"field tags\.tags is an object, not a text",
        ),
        ({"ai_output": {"tags": ["a"], "extra": {"b": ["c"]}}}, r"field ai_output\.extra holds"),
        ({"character": {"name": "kit", "costume": "hat"}}, r"field character\.costume holds text"),
        ({"caption": "a fox", "nl": "It sits."}, "field nl holds text that nobody reads"),
        ({"caption": ["a fox"]}, "field caption is a list, not a text"),
        ({"tags": ["a"], "nl": ["It sits."]}, "field nl is a list, not a text"),
        ({"tags": ["a"], "count": 1}, "field count is a number, not a text or a list"),
        ({"tags": ["a", 1990]}, "field tags has a number in its list"),
        ({"tags": ["a"], "fixed": "newest"}, "field fixed is a text, not an object"),
        ({"tags": ["a"], "meta": ["sks"]}, "field meta is a list, not an object"),
        ({"tags": ["a"], "meta": {"trigger": True}}, r"field meta\.trigger is true or false"),
    ],
)
def test_a_field_of_another_type_or_that_nobody_reads_is_named(content: Any, problem: str):
    with pytest.raises(DataError, match=rf"^a\.json: {problem}"):
        parse_json_caption(json.dumps(content), "a.json")


def test_json_that_is_nested_beyond_reason_is_named():
    with pytest.raises(DataError, match=r"a\.json is not JSON"):
        parse_json_caption("[" * 200_000, "a.json")
    for depth in range(100, 3000, 100):
        with pytest.raises(DataError, match=r"a\.json"):
            parse_json_caption('{"x": ' * depth + '"fox"' + "}" * depth, "a.json")


def test_half_a_character_is_named_with_its_picture(tmp_path: Path):
    (tmp_path / "a.json").write_text(r'{"tags": ["fox \ud83e"]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.png holds half a character, \\ud83e"):
        picture_captions(picture(tmp_path), None)
    (tmp_path / "a.json").write_text(r'{"tags": ["fox \ud83e\udd8a"]}', encoding="utf-8")
    assert picture_captions(picture(tmp_path), None).full == ("fox 🦊",)


def test_a_caption_that_cannot_be_read_leaves_its_picture_out_by_name(tmp_path: Path):
    for name, content in (("a", {"tags": ["fox"]}), ("b", {"tags": ["fox"], "mood": "sad"})):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    pictures = find_pictures([picture(tmp_path).dataset])

    texts = PictureTexts(pictures, caption_variants=None)
    assert list(texts) == ["", "fox"]
    survey = survey_pictures(pictures, caption_variants=None)
    for skipped in (*texts.skipped, *survey.skipped):
        assert skipped.name == str(tmp_path / "b.png")
        assert "field mood holds text that nobody reads" in skipped.reason
    assert len(survey.skipped) == len(texts.skipped) == 1


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
