"""Prompts of previews, in Kohya's form."""

import pytest

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.sample_prompts import parse_prompt, read_sample_prompts
from anima_pipe.records import DEFAULT_NEGATIVE, PreviewPrompt


def test_a_bare_prompt_takes_the_templates_settings():
    prompt = parse_prompt("1girl, solo", "here")
    assert prompt == PreviewPrompt(prompt="1girl, solo")
    assert (prompt.width, prompt.height, prompt.steps, prompt.guidance) == (1024, 1024, 30, 4.0)
    assert prompt.negative == DEFAULT_NEGATIVE


def test_every_setting_of_a_line_is_read():
    line = "a - b, c-d --n bad, worse --w 832 --h 1216 --D 7 --s 12 --l 3.5 --fs 2 --ss euler"
    prompt = parse_prompt(line, "here")
    assert prompt == PreviewPrompt(
        prompt="a - b, c-d",
        negative="bad, worse",
        width=832,
        height=1216,
        seed=7,
        steps=12,
        guidance=3.5,
        shift=2.0,
    )


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_prompt_ends_at_the_end_of_its_line_alone(tmp_path, sign):
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"a{sign}fox\r\na cat --q 1\n".encode())
    with pytest.raises(ConfigError, match=r"prompts\.txt line 2: unknown setting --q"):
        read_sample_prompts(path)
    path.write_bytes(f"a{sign}fox --w 832\r\na cat\n".encode())
    assert [prompt.prompt for prompt in read_sample_prompts(path)] == [f"a{sign}fox", "a cat"]


def test_half_a_character_in_a_prompt_is_named(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('["a cat",\n {"prompt": "a fox", "negative_prompt": "\\ud83e"}]')
    with pytest.raises(ConfigError, match=r"prompts\.json line 2: half a character, \\ud83e"):
        read_sample_prompts(path)
    with pytest.raises(ConfigError, match="half a character"):
        parse_prompt("a fox \udcff", "here")


TOML = """
[prompt]
negative_prompt = "bad"
width = 832
seed = 5

[[prompt.subset]]
prompt = "a cat"
sample_steps = 12

[[prompt.subset]]
prompt = "a dog"
negative_prompt = "worse"
height = 1216
scale = 3
flow_shift = 2.5
sample_sampler = "euler"
"""


def test_a_toml_file_has_shared_settings_and_one_table_for_each_picture(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text(TOML)
    assert read_sample_prompts(path) == [
        PreviewPrompt(prompt="a cat", negative="bad", width=832, seed=5, steps=12),
        PreviewPrompt(
            prompt="a dog",
            negative="worse",
            width=832,
            height=1216,
            seed=5,
            guidance=3.0,
            shift=2.5,
        ),
    ]


def test_a_json_file_is_a_list_of_lines_and_of_objects(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('[\n "a cat --w 832",\n {"prompt": "a dog, [x]", "scale": 3, "seed": 7}\n]\n')
    assert read_sample_prompts(path) == [
        PreviewPrompt(prompt="a cat", width=832),
        PreviewPrompt(prompt="a dog, [x]", guidance=3.0, seed=7),
    ]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.toml", TOML + "sample_step = 3\n", r"p\.toml line 18: unknown setting sample_step"),
        ("p.toml", TOML.replace("832", "100"), r"p\.toml line 4: width 100"),
        ("p.toml", TOML.replace("832", '"832"'), r"line 4: width takes a whole number"),
        ("p.toml", TOML + "[[prompt.subset]]\nseed = 1\n", r"line 18: no prompt"),
        ("p.toml", "[prompt]\nprompt = 'a'\n", r"holds no \[\[prompt.subset"),
        ("p.toml", "a = ", "not TOML"),
        ("p.json", '["a",\n\n {"prompt": "b", "seed": true}]', r"p\.json line 3: seed takes"),
        ("p.json", '["a", 3]', r"p\.json line 1: 3 is no prompt"),
        ("p.json", '[{"prompt": "a", "guidance_scale": 3}]', "guidance_scale has no meaning"),
        ("p.json", '{"prompt": "a"}', "not a JSON list"),
        ("p.json", "[", "not JSON"),
        ("p.json", "[]", "holds no prompt"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_file_and_line(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        read_sample_prompts(path)


def test_an_empty_prompt_with_settings_is_the_empty_caption():
    assert parse_prompt("--w 256 --h 256", "here").prompt == ""


def test_comments_and_empty_lines_are_passed_over(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# first\n\na\n  # second\nb --d 3\n", encoding="utf-8")
    assert [(p.prompt, p.seed) for p in read_sample_prompts(path)] == [("a", 0), ("b", 3)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a --q 3", "--q"),
        ("a --w wide", "'wide'"),
        ("a --w 100", "multiple of 16"),
        ("a --h 0", "height 0"),
        ("a --s 0", "steps"),
        ("a --s 1001", "1001 steps"),
        ("a --d -1", "seed"),
        ("a --fs 0", "shift"),
        ("a --l nan", "'nan'"),
        ("a --ss dpmsolver++", "dpmsolver"),
        ("a --g 3.5", "--g has no meaning for Anima"),
        ("a --cn pose.png", "--cn has no meaning"),
        ("a --am 0.5", "--am has no meaning"),
    ],
)
def test_what_cannot_be_honoured_is_named_with_its_place(line, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_prompt(line, "prompts.txt line 3")
    assert "prompts.txt line 3" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe1"])
def test_a_file_without_usable_prompts_is_an_error(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"prompts\.txt"):
        read_sample_prompts(path)


@pytest.mark.parametrize("name", ["missing.txt", "missing.toml", "missing.json", "prompts.yaml"])
def test_a_missing_file_or_another_format_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        read_sample_prompts(tmp_path / name)
