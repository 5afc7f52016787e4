"""A tokenizer.json that is made from spiece.model gives the ids of the released one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_text_encoder import GOLDEN, write_t5_folder
from tokenizers import Tokenizer

from anima_pipe.encoders.t5_conversion import write_fast_tokenizer

RELEASED = Tokenizer.from_file(str(GOLDEN / "tokenizers" / "t5" / "tokenizer.json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_t5_folder(tmp_path_factory.mktemp("t5") / "t5")
    target = folder / "made.json"
    assert write_fast_tokenizer((folder / "spiece.model").read_bytes(), target) == 32000
    return Tokenizer.from_file(str(target))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "1girl, solo, long hair, blue eyes, smile",
        "A photo of  two   cats.\nOn a bench\t!",
        "  leading and trailing  ",
        "ﬁne café \uff21\uff4e\uff49 猫 🦊 ½",
        "<extra_id_0> and <pad> and </s>",
    ],
)
def test_a_caption_has_the_ids_that_the_released_tokenizer_gives(made: Tokenizer, caption: str):
    assert made.encode(caption).ids == RELEASED.encode(caption).ids


@given(caption=st.text(max_size=60))
def test_any_text_has_the_ids_that_the_released_tokenizer_gives(made: Tokenizer, caption: str):
    assert made.encode(caption).ids == RELEASED.encode(caption).ids


def test_the_vocabulary_is_the_released_one(made: Tokenizer):
    assert made.get_vocab(with_added_tokens=True) == RELEASED.get_vocab(with_added_tokens=True)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\xff" * 40])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        write_fast_tokenizer(content, tmp_path / "tokenizer.json")

    assert not (tmp_path / "tokenizer.json").exists()
