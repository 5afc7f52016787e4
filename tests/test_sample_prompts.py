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
    line = "a - b, c-d --n bad, worse --w 832 --h 1216 --d 7 --s 12 --l 3.5"
    prompt = parse_prompt(line, "here")
    assert prompt == PreviewPrompt(
        prompt="a - b, c-d",
        negative="bad, worse",
        width=832,
        height=1216,
        seed=7,
        steps=12,
        guidance=3.5,
    )


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


@pytest.mark.parametrize("name", ["missing.txt", "prompts.toml"])
def test_a_missing_file_or_another_format_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        read_sample_prompts(tmp_path / name)
