"""Prompts are read, encoded and drawn as ComfyUI does it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from anima_pipe.cli.main import main
from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE
from anima_pipe.drawing.painter import EncodedPrompt, LazyVae, Painter, encoded_prompts
from anima_pipe.encoders import TextEncoder, load_text_encoder
from anima_pipe.fill import CacheSettings, TextSettings, fill_text
from anima_pipe.model import load_transformer
from anima_pipe.records import PreviewPrompt, Text, TextCondition, WeightedText
from anima_pipe.runtime import LOGGER
from anima_pipe.shards import open_cache, text_key
from anima_pipe.source.prompts import escaped, has_weights, prompt_texts, read_prompt

Parts = list[tuple[str, float]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(DEMO_QWEN, DEMO_T5_TOKENIZER)


def parts_by_definition(text: str, weight: float = 1.0) -> Iterator[tuple[str, float]]:
    """Part a prompt as ComfyUI does: level by level, each from its beginning to its end."""
    parts, part, depth = list[str](), "", 0
    for letter in text:
        if letter == "(":
            if depth == 0 and part:
                parts.append(part)
                part = ""
            depth += 1
        part += letter
        if letter == ")":
            depth -= 1
            if depth == 0:
                parts.append(part)
                part = ""
    for whole in [*parts, part] if part else parts:
        if len(whole) < 2 or whole[0] != "(" or whole[-1] != ")":
            yield whole, weight
            continue
        inner, own = whole[1:-1], weight * 1.1
        beginning, _, number = inner.rpartition(":")
        with suppress(ValueError):
            if beginning and math.isfinite(float(number)):
                inner, own = beginning, float(number)
        yield from parts_by_definition(inner, own)


@given(st.text("((()))::ab 1.", max_size=24))
@example("(a (b)")
@example("a) ((b:2) c) d")
@example("(:1)(::1)((a:1):inf)()")
def test_a_prompt_is_parted_as_its_definition_says(prompt: str):
    expected = list(parts_by_definition(prompt))
    read = read_prompt(prompt)
    if isinstance(read, WeightedText):
        assert list(read.parts) == expected
    else:
        assert [(read, 1)] == (expected or [("", 1)])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a (fox)", [("a ", 1), ("fox", 1.1)]),
        ("((fox))", [("fox", 1.21)]),
        ("(fox:1.2), snow", [("fox", 1.2), (", snow", 1)]),
        ("(fox: 0.5 )(snow)", [("fox", 0.5), ("snow", 1.1)]),
        ("((fox):1.2)", [("fox", 1.32)]),
        ("((fox:1.2))", [("fox", 1.2)]),
        ("((fox:1.0):0.0)", [("fox", 1)]),
        ("(fox:-1)", [("fox", -1)]),
        (
            "foo ((((lol (cat:666) attack:100)))) baz",
            [("foo ", 1), ("lol ", 100), ("cat", 666), (" attack", 100), (" baz", 1)],
        ),
        (
            "foo ((((lol (cat:666) attack):100))) baz",
            [("foo ", 1), ("lol ", 110), ("cat", 666), (" attack", 110), (" baz", 1)],
        ),
        # Each stretch is tokenised by itself, of the same weight or not.
        ("a (fox:1) b", [("a ", 1), ("fox", 1), (" b", 1)]),
        ("re: (re:zero)", [("re: ", 1), ("re:zero", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        # What is not closed is text, unless it ends as if it were.
        ("a (fox", [("a ", 1), ("(fox", 1)]),
        ("(a (fox)", [("a ", 1.1), ("(fox", 1.1)]),
        ("a) b (c)", [("a) b (c)", 1)]),
        ("a) (b (c)", [("a) (b ", 1), ("c", 1.1)]),
        ("()", []),
        # No number that a picture could come of.
        ("(fox:nan) (fox:inf)", [("fox:nan", 1.1), (" ", 1), ("fox:inf", 1.1)]),
    ],
)
def test_parentheses_give_the_weights_that_comfyui_reads(prompt: str, parts: Parts) -> None:
    read = read_prompt(prompt)
    found = list(read.parts) if isinstance(read, WeightedText) else [(read, 1)] if read else []
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", ""),
        ("1girl, solo", "1girl, solo"),
        (r"saber \(fate\)", "saber (fate)"),
        (r"a \\(fox\\)", r"a \(fox\)"),
        (r"C:\fox", r"C:\fox"),
        ("[fox] {snow} <sun>", "[fox] {snow} <sun>"),
    ],
)
def test_a_prompt_without_weights_is_the_caption_that_reads_the_same(prompt: str, text: str):
    assert read_prompt(prompt) == text
    assert text_key(read_prompt(prompt)) == text_key(text)


@given(st.text(alphabet="ab\\(): :1.5\n"))
def test_the_prompt_for_a_text_is_read_as_that_text(text: str):
    assert read_prompt(escaped(text)) == text


def test_parentheses_may_be_nested_deeper_than_anybody_would():
    deep = read_prompt("(" * 3000 + "fox" + ")" * 3000)
    assert str(deep) == "fox"


@pytest.mark.parametrize(
    ("caption", "weighted"),
    [
        ("fox, (snow:1.2)", True),
        ("((fox:.5), snow)", True),
        ("fox (animal), re:zero, :3", False),
        (r"saber \(fate:1\)", False),
        ("(re:zero)", False),
    ],
)
def test_weights_are_told_from_other_parentheses(caption: str, weighted: bool):
    assert has_weights(caption) is weighted


def test_another_weight_is_another_text():
    prompts = ["a fox", "a (fox)", "a (fox:1.2)", "a (fox:1.0)"]
    assert len({text_key(read_prompt(prompt)) for prompt in prompts}) == len(prompts)
    # The caption that is written so is none of them.
    assert text_key("a (fox:1.2)") not in {text_key(read_prompt(prompt)) for prompt in prompts}


def test_stretches_are_tokenised_apart_and_weighted_for_t5_alone(encoder: TextEncoder):
    prompt = read_prompt("a (red fox:1.5), snow")
    (weighted,) = encoder.encode([prompt])
    apart = encoder.encode(["a ", "red fox", ", snow"])

    ids = [condition.t5_ids[:-1].tolist() for condition in apart]
    assert weighted.t5_ids.tolist() == [*ids[0], *ids[1], *ids[2], 1]
    assert weighted.t5_weights is not None
    expected = [1.0] * len(ids[0]) + [1.5] * len(ids[1]) + [1.0] * (len(ids[2]) + 1)
    assert weighted.t5_weights.tolist() == expected
    assert len(weighted.qwen_hidden) == sum(len(condition.qwen_hidden) for condition in apart)
    # The first stretch's states know of nothing behind them.
    first = apart[0].qwen_hidden
    torch.testing.assert_close(weighted.qwen_hidden[: len(first)], first)
    (heavier,) = encoder.encode([read_prompt("a (red fox:9), snow")])
    assert torch.equal(heavier.qwen_hidden, weighted.qwen_hidden)


def test_a_prompt_that_is_all_one_weight_keeps_it(encoder: TextEncoder):
    (condition,) = encoder.encode([read_prompt("(fox:0)")])
    assert condition.t5_weights is not None
    assert condition.t5_weights.tolist() == [0.0] * (len(condition.t5_ids) - 1) + [1.0]


def test_weights_are_factors_of_what_the_text_adapter_makes(encoder: TextEncoder):
    model = load_transformer(DEMO_TRANSFORMER)
    (condition,) = encoder.encode([read_prompt("a (red fox:1.5), snow")])
    assert condition.t5_weights is not None
    text = condition.qwen_hidden[None], condition.t5_ids[None]

    plain = model.preprocess_text_embeds(*text)
    weighted = model.preprocess_text_embeds(*text, t5_weights=condition.t5_weights[None])

    length = len(condition.t5_ids)
    wanted = plain[0, :length] * condition.t5_weights[:, None]
    torch.testing.assert_close(weighted[0, :length], wanted)
    assert not weighted[0, length:].any()
    with pytest.raises(ValueError, match=r"t5_weights of shape \[1, 2\]"):
        model.preprocess_text_embeds(*text, t5_weights=torch.ones(1, 2))


def cached(folder: Path, prompts: list[PreviewPrompt]) -> list[EncodedPrompt]:
    """What previews are drawn from: the prompts' texts by way of the cache."""
    settings = TextSettings(
        cache=CacheSettings(folder=folder, dtype="fp32", device="cpu"),
        qwen=DEMO_QWEN,
        t5_tokenizer_dir=DEMO_T5_TOKENIZER,
    )
    fill_text(prompt_texts(prompts), settings)
    return encoded_prompts(prompts, open_cache(folder))


def same(one: TextCondition, other: TextCondition) -> bool:
    assert (one.t5_weights is None) == (other.t5_weights is None)
    weights = [t.t5_weights if t.t5_weights is not None else torch.ones(1) for t in (one, other)]
    return (
        torch.equal(weights[0], weights[1])
        and torch.equal(one.t5_ids, other.t5_ids)
        and torch.allclose(one.qwen_hidden, other.qwen_hidden, atol=1e-6)
    )


def test_previews_have_their_weights_from_the_cache(tmp_path: Path, encoder: TextEncoder):
    prompts = [
        PreviewPrompt(prompt="a (red fox:1.3)", negative="(blurry)"),
        PreviewPrompt(prompt=r"fox \(animal\)", negative="a (red fox:1.3)"),
    ]
    found = cached(tmp_path, prompts)

    assert [encoded.prompt for encoded in found] == prompts
    texts: list[Text] = [
        WeightedText((("a ", 1.0), ("red fox", 1.3))),
        WeightedText((("blurry", 1.1),)),
        "fox (animal)",
        WeightedText((("a ", 1.0), ("red fox", 1.3))),
    ]
    conditions = [c for encoded in found for c in (encoded.positive, encoded.negative)]
    for condition, wanted in zip(conditions, encoder.encode(texts), strict=True):
        assert same(condition, wanted)


def drawn(folder: Path, prompt: str, negative: str) -> np.ndarray:
    """The picture of `anima-pipe sample`."""
    given = ["sample", "--demo", "--device", "cpu", "--width", "64", "--height", "64"]
    given += ["--steps", "2", "--output_dir", str(folder), "--prompt", prompt]
    ended = CliRunner().invoke(main, [*given, "--negative", negative])
    LOGGER.handlers.clear()
    assert ended.exit_code == 0, ended.stderr
    with Image.open(folder / "sample_000.png") as picture:
        # For ComfyUI to draw it again, as it was written.
        first, second, *_ = picture.info["parameters"].split("\n")
        assert (first, second) == (prompt, f"Negative prompt: {negative}")
        return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    ("prompt", "negative", "texts"),
    [
        (r"a \(fox\)", r"\(blurry\)", ["a (fox)", "(blurry)"]),
        (
            "a (fox:4)",
            "(blurry:3), bad",
            [
                WeightedText((("a ", 1.0), ("fox", 4.0))),
                WeightedText((("blurry", 3.0), (", bad", 1.0))),
            ],
        ),
        (
            "a red fox in snow, " * 120,
            "blurry",
            ["a red fox in snow, " * 119 + "a red fox in snow,", "blurry"],
        ),
    ],
    ids=["escaped", "weighted", "over 512 tokens"],
)
def test_sample_and_previews_draw_both_halves_of_guidance_so(
    tmp_path: Path, encoder: TextEncoder, prompt: str, negative: str, texts: list[Text]
):
    prompt = prompt.strip()
    picture = drawn(tmp_path / "sample", prompt, negative)

    settings = PreviewPrompt(prompt=prompt, negative=negative, width=64, height=64, steps=2)
    painter = Painter(
        load_transformer(DEMO_TRANSFORMER), LazyVae(DEMO_VAE, CPU), CPU, torch.float32
    )
    positive, against = encoder.encode(texts)
    by_hand = EncodedPrompt(prompt=settings, positive=positive, negative=against)
    assert np.abs(np.asarray(painter.draw(by_hand)).astype(int) - picture).max() <= 1
    (preview,) = cached(tmp_path / "cache", [settings])
    assert np.abs(np.asarray(painter.draw(preview)).astype(int) - picture).max() <= 1
    if positive.t5_weights is not None:
        # Of the same tokens.
        for other in (("a (fox:1.0)", negative), (prompt, "(blurry:1.0), bad")):
            unlike = drawn(tmp_path / other[0] / other[1], *other)
            assert np.abs(unlike - picture).max() > 1
