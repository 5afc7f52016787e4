"""A folder with T5's tokenizer is whole and agrees with itself, or it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_text_encoder import write_t5_folder

from anima_pipe.encoders import check_t5_tokenizer
from anima_pipe.errors import ConfigError


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return write_t5_folder(tmp_path_factory.mktemp("whole") / "t5")


@pytest.fixture
def t5(whole_folder, tmp_path):
    return shutil.copytree(whole_folder, tmp_path / "t5")


def t5_problem(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_t5_tokenizer(folder)
    assert "\n" not in caught.value.problem
    assert "\n" not in caught.value.remedy
    return caught.value.problem


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    stored = json.loads(path.read_bytes())
    edit(stored)
    path.write_text(json.dumps(stored))


def test_a_whole_t5_folder_passes(t5):
    check_t5_tokenizer(t5)


def test_all_missing_files_of_t5_are_listed_at_once(t5):
    (t5 / "config.json").unlink()
    (t5 / "spiece.model").unlink()
    assert "lacks config.json, spiece.model" in t5_problem(t5)


def test_a_missing_t5_folder_is_refused_with_the_command_that_fills_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        check_t5_tokenizer(tmp_path / "t5")
    assert "fetch-tokenizer" in caught.value.remedy


@pytest.mark.parametrize("name", ["config.json", "spiece.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"[1, 2]"])
def test_a_t5_file_that_does_not_load_is_named(t5, name, content):
    (t5 / name).write_bytes(content)
    assert name in t5_problem(t5)


def test_a_config_of_another_tokenizer_is_refused(t5):
    edit_json(t5 / "config.json", lambda stored: stored.update(model_type="umt5"))
    assert "umt5" in t5_problem(t5)


def test_files_with_different_numbers_of_pieces_disagree(t5):
    edit_json(
        t5 / "tokenizer.json", lambda stored: stored["model"]["vocab"].append(["zzqx", -20.0])
    )
    assert "32001 pieces against 32000" in t5_problem(t5)


def test_files_with_pieces_in_another_order_disagree(t5):
    def swap(stored):
        pieces = stored["model"]["vocab"]
        pieces[100], pieces[200] = pieces[200], pieces[100]

    edit_json(t5 / "tokenizer.json", swap)
    assert "other ids for" in t5_problem(t5)


def test_files_that_cut_captions_differently_disagree(t5):
    edit_json(t5 / "tokenizer.json", lambda stored: stored.update(pre_tokenizer=None))
    assert "other ids for '1girl" in t5_problem(t5)


def test_a_tokenizer_with_more_ids_than_the_adapter_embeds_is_refused(t5):
    many = [[f"<extra_id_{number}>", 0.0] for number in range(100, 200)]
    edit_json(t5 / "tokenizer.json", lambda stored: stored["model"]["vocab"].extend(many))
    assert "32128" in t5_problem(t5)


def test_another_vocabulary_of_t5s_size_is_refused(t5):
    def swap(stored: dict) -> None:
        vocabulary = stored["model"]["vocab"]
        vocabulary[3202], vocabulary[3203] = vocabulary[3203], vocabulary[3202]

    edit_json(t5 / "tokenizer.json", swap)

    assert "has another vocabulary than T5: '▁girl' as 3203 instead of 3202" in t5_problem(t5)


def test_a_config_with_another_padding_is_refused(t5):
    edit_json(t5 / "config.json", lambda stored: stored.update(pad_token_id=3))

    assert "<pad> as 3" in t5_problem(t5)
