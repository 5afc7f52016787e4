"""The table of options: it knows every option of Kohya's and of the seed, each exactly once."""

import ast
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from anima_pipe.cli.main import main
from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.options import (
    EVERY_COMMAND,
    OPTIONS,
    Honoured,
    Kind,
    NoOp,
    Option,
    Refused,
    find_option,
    nearest_name,
    options_of,
)
from anima_pipe.kohya.rules import SEED_SHIFT
from anima_pipe.kohya.values import UnfitValueError, key_values, read_value

DATA = Path(__file__).parent / "data"
REFERENCES = ("seed_args", "upstream_args", "upstream_new_args")


def reference_rows(reference: str) -> list[dict]:
    return json.loads((DATA / f"{reference}.json").read_text(encoding="utf-8"))


ALL_REFERENCE_ROWS = [row for reference in REFERENCES for row in reference_rows(reference)]


def option(name: str) -> Option:
    found = find_option(name)
    assert found is not None, name
    return found


def test_no_spelling_stands_twice():
    counts = Counter(spelling for row in OPTIONS for spelling in row.spellings)
    assert [spelling for spelling, count in counts.items() if count > 1] == []


def test_every_option_of_the_seed_and_of_kohya_is_in_the_table():
    assert [row["name"] for row in ALL_REFERENCE_ROWS if find_option(row["name"]) is None] == []


def test_defaults_are_those_of_the_references_or_say_why_not():
    def differs(row: dict) -> bool:
        ours = option(row["name"])
        if ours.name != row["name"] or ours.default_note:
            return False
        same = {ours.default, *ours.asks_nothing, ours.same_as.get(str(row["default"]))}
        return (row["default"] or None) not in {value or None for value in same}

    assert {row["name"] for row in ALL_REFERENCE_ROWS if differs(row)} == set()


def test_choices_of_the_references_are_taken_or_refused_by_name():
    def unheard(row: dict) -> list[str]:
        ours = option(row["name"])
        known = {*ours.choices, *ours.same_as, *ours.stand_ins, *ours.refused_values}
        return [value for value in row.get("choices", []) if value and value not in known]

    rows = [r for r in ALL_REFERENCE_ROWS if isinstance(option(r["name"]).status, Honoured)]
    assert {row["name"]: unheard(row) for row in rows if unheard(row)} == {}


REFERENCE_KINDS = {
    "bool": {Kind.FLAG},
    "int": {Kind.INTEGER},
    "float": {Kind.NUMBER, Kind.COUNT_OR_SHARE, Kind.TEXTS},
    "int_or_float": {Kind.NUMBER, Kind.COUNT_OR_SHARE},
    "str": {Kind.TEXT, Kind.PATH, Kind.SIZE, Kind.RANGE, Kind.TEXTS, Kind.PAIRS},
    "Path": {Kind.PATH},
}


def test_kinds_are_those_of_the_references():
    kinds: dict[str, set[Kind]] = {}
    for row in ALL_REFERENCE_ROWS:
        kinds.setdefault(row["name"], set()).update(REFERENCE_KINDS[row["type"]])
    assert [name for name, allowed in kinds.items() if option(name).kind not in allowed] == []


def test_options_that_take_several_values_do_so_here_too():
    several = {row["name"] for row in ALL_REFERENCE_ROWS if row.get("nargs")}
    assert {option(name).kind for name in several} == {Kind.TEXTS, Kind.PAIRS}


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
def test_every_row_is_whole(row: Option):
    assert row.help.endswith(".")
    assert row.group
    assert row.commands
    assert set(row.commands) <= set(EVERY_COMMAND)
    assert all(choice in row.choices for choice in row.same_as.values())
    assert not set(row.choices) & {*row.refused_values, *row.stand_ins}
    assert all(stand_in.choice in row.choices for stand_in in row.stand_ins.values())
    if row.choices and row.default is not None:
        assert row.default in row.choices
    if isinstance(row.status, NoOp):
        assert row.status.why
    if isinstance(row.status, Refused):
        assert row.status.why
        assert row.status.instead


@pytest.mark.parametrize(
    "row",
    [row for row in OPTIONS if isinstance(row.status, Honoured) and row.default is not None],
    ids=lambda row: row.name,
)
def test_a_default_is_a_value_that_the_option_takes(row: Option):
    assert read_value(row, row.default, typed=True) == row.default


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--fp8_scaled"], "Kohya's trainer of Anima has no base in scaled 8-bit floats"),
        (["--conditioning", "x.png"], "--conditioning is an option of a fork for image editing"),
    ],
)
def test_what_another_trainer_takes_is_refused_with_a_reason_on_the_command_line(flags, reason):
    ended = CliRunner().invoke(main, ["train", *flags])
    assert ended.exit_code == 2
    assert reason in ended.stderr
    assert "Fix: " in ended.stderr


OTHERWISE_TRAINED = {
    "which data": {"color_aug", "dataset_class", "weighted_captions", "config"},
    "which part": {"network_train_text_encoder_only", "dit_only"},
    "which rate": {"lr_warmup_ratio"},
    "which optimizer": {"use_8bit_adam", "use_lion_optimizer"},
    "from where": {"initial_epoch", "initial_step", "resume_from_huggingface"},
    "whose state": {"resume_ignore_optimizer_mismatch"},
    "which noise": {"adaptive_noise_scale"},
    "which precision": {"full_fp16", "fp16_master_weights_and_gradients", "fp8_scaled"},
    "which model": {"train_inpainting", "cond_emb_dim"},
}
"""What is refused, by what an adapter would be trained with that was not asked for."""


def test_only_what_would_train_something_else_than_was_asked_is_refused():
    refused = {row.name for row in OPTIONS if isinstance(row.status, Refused)}
    refused = {name for name in refused if not name.startswith("lllite_")}
    assert refused == set().union(*OTHERWISE_TRAINED.values())
    values = {row.name for row in OPTIONS if row.refused_values}
    assert values == {"network_module", "optimizer_type", "lr_scheduler"}


def test_relations_between_rows_name_rows_that_exist():
    for row in OPTIONS:
        if row.acts_with is not None:
            other, values = row.acts_with
            assert set(values) <= set(option(other).choices)
        if row.or_else:
            assert row.when_missing
            assert all(set(option(other).commands) >= set(row.commands) for other in row.or_else)
    assert SEED_SHIFT in option("discrete_flow_shift").aliases


def test_schedules_are_those_that_the_trainer_knows():
    from anima_pipe.optimizing.schedules import SCHEDULES

    assert option("lr_scheduler").choices == SCHEDULES


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_takes_a_config_file_and_writes_a_summary(command: str):
    names = {row.name for row in options_of(command)}
    assert {"config_file", "summary_json", "debug"} <= names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning_rte", "learning_rate"),
        ("network_dimm", "network_dim"),
        ("--network-dim", "network_dim"),
        ("qwen_path", "qwen3_path"),
        ("zzz", None),
    ],
)
def test_the_nearest_name_is_found(wrong: str, right: str | None):
    assert nearest_name(wrong) == right


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", 1e-4, 1e-4),
        ("network_dim", 16, 16),
        ("lr_warmup_steps", 100, 100),
        ("lr_warmup_steps", 100.0, 100),
        ("lr_warmup_steps", 0.05, 0.05),
        ("resolution", 1024, (1024, 1024)),
        ("resolution", "1024", (1024, 1024)),
        ("resolution", "832, 1216", (832, 1216)),
        ("resolution", [832, 1216], (832, 1216)),
        ("vae", "a/b.safetensors", Path("a/b.safetensors")),
        ("optimizer_args", ["betas=(0.9,0.99)"], {"betas": (0.9, 0.99)}),
        ("timestep_sampling", "logit_normal", "shift"),
        ("shuffle_caption", True, True),
    ],
)
def test_values_of_a_typed_file_are_read(name: str, given: object, value: object):
    read = read_value(option(name), given, typed=True)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("network_dim", "16", 16),
        ("lr_warmup_steps", "0.05", 0.05),
        ("lr_warmup_steps", "100", 100),
        ("shuffle_caption", "True", True),
        ("network_args", ("lokr_factor=8", "verbose=true"), {"lokr_factor": 8, "verbose": True}),
        ("network_args", "lokr_factor=8", {"lokr_factor": 8}),
        ("output_name", "12", "12"),
    ],
)
def test_texts_of_the_command_line_are_read(name: str, given: object, value: object):
    assert read_value(option(name), given, typed=False) == value


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("learning_rate", "1e-4", "'1e-4' is not a number"),
        ("learning_rate", True, "true is not a number"),
        ("learning_rate", float("nan"), "nan is not a number"),
        ("network_dim", "16", "'16' is not a whole number"),
        ("network_dim", 16.0, "16.0 is not a whole number"),
        ("network_dim", 0, "0 is too small"),
        ("caption_dropout_rate", 5, "5 is too large"),
        ("shuffle_caption", "true", "'true' is neither true nor false"),
        ("shuffle_caption", 1, "1 is neither true nor false"),
        ("lr_warmup_steps", 1.5, "1.5 is neither a whole number nor a share"),
        ("resolution", "big", "'big' is not a size"),
        ("resolution", True, "true is not a size"),
        ("resolution", [1, 2, 3], "[1, 2, 3] is not a size"),
        ("resolution", [1024, -1], "[1024, -1] is not a size"),
        ("mixed_precision", "bf17", "'bf17' is unknown"),
        ("mixed_precision", 16, "16 is not a text"),
        (
            "network_module",
            "networks.lora_flex",
            (
                "Unsupported network module: networks.lora_flex. Expected one of: "
                "('networks.lora_anima', 'networks.lokr_anima')"
            ),
        ),
        ("network_module", "networks.lora", "Unsupported network module: networks.lora. Expected"),
        ("network_module", "networks.lora", "Stable Diffusion"),
        ("lr_warmup_steps", "100%", "'100%' is no percentage of a run"),
        ("lr_warmup_steps", "ten%", "'ten%' is no percentage of a run"),
        ("lr_warmup_steps", "-1%", "'-1%' is no percentage of a run"),
        ("optimizer_args", "betas=(0.9,0.99)", "is not a list of texts"),
        ("optimizer_args", ["betas"], "'betas' is not of the form key=value"),
        ("optimizer_args", ["eps=1", "eps=2"], "eps stands twice"),
        ("vae", 5, "5 is not a path"),
    ],
)
def test_unfit_values_are_named(name: str, given: object, problem: str):
    with pytest.raises(UnfitValueError) as caught:
        read_value(option(name), given, typed=True)
    assert problem in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("lr_scheduler", "cosin", "cosine"),
        ("lr_scheduler", "Cosine_With_Restart", "cosine_with_restarts"),
        ("loss_type", "hubber", "huber"),
        ("weighting_scheme", "logitnormal", "logit_normal"),
        ("network_module", "networks.lora_amina", "networks.lora_anima"),
    ],
)
def test_a_misspelt_choice_suggests_the_right_one(name: str, wrong: str, right: str):
    with pytest.raises(UnfitValueError) as caught:
        read_value(option(name), wrong, typed=True)
    assert caught.value.remedy.startswith(f"did you mean {right}? use one of ")


@pytest.mark.parametrize("name", ["lr_warmup_steps", "lr_decay_steps"])
@pytest.mark.parametrize(
    ("given", "value"), [("10%", 0.1), ("2.5 %", 0.025), ("0%", 0), (0.1, 0.1), (10, 10)]
)
@pytest.mark.parametrize("typed", [True, False])
def test_steps_of_the_rate_may_be_a_share_of_the_run(name, given, value, typed):
    written = given if typed else str(given)
    assert read_value(option(name), written, typed=typed) == pytest.approx(value)


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("weight_decay=0.01", 0.01),
        ("betas=0.9,0.99", (0.9, 0.99)),
        ("betas=[0.9, 0.99]", [0.9, 0.99]),
        ("decouple=True", True),
        ("decouple=false", False),
        ("limit=None", None),
        ("algo=lokr", "lokr"),
        ("target_modules=q_proj,k_proj", "q_proj,k_proj"),
        ("network_reg_dims=.*attn.*=32,.*mlp.*=16", ".*attn.*=32,.*mlp.*=16"),
        ("include_patterns=['a.*']", ["a.*"]),
        ("odd={[]: 1}", "{[]: 1}"),
        ("empty=", ""),
    ],
)
def test_arguments_are_read_as_python_would(item: str, value: object):
    assert list(key_values([item]).values()) == [value]


TESTS = Path(__file__).parent
OWN_KEYS = [key.row for key in DATASET_KEYS.values() if key.fallback is None]
HONOURED = [row for row in (*OPTIONS, *OWN_KEYS) if isinstance(row.status, Honoured)]


@cache
def words_of_tests(file: Path) -> dict[str, set[str]]:
    """The words of each test function of a file, and of what stands there beside the tests."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    words: dict[str, set[str]] = {"": set()}
    for node in ast.parse(text).body:
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        start = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        found = set(re.findall(r"\w+", "\n".join(lines[start - 1 : node.end_lineno])))
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        words.setdefault(node.name if is_test else "", set()).update(found)
    return words


def complaint(row: Option) -> str | None:
    """What is wrong with the test that a row names."""
    if not row.test:
        return "names no test"
    name, colons, function = row.test.partition("::")
    file = TESTS / name
    if not colons or not file.is_file():
        return f"names {row.test}, but there is no file {name}"
    words = words_of_tests(file)
    if function not in words or not function:
        return f"names {row.test}, but there is no such test"
    if not {*row.spellings} & (words[function] | words[""]):
        return f"names {row.test}, which does not speak of it"
    return None


@pytest.mark.parametrize("row", HONOURED, ids=lambda row: row.name)
def test_an_honoured_option_names_a_test_that_speaks_of_it(row: Option):
    assert complaint(row) is None, f"{row.name} {complaint(row)}"


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("", "names no test"),
        ("test_nowhere.py::test_a", "there is no file"),
        ("test_options.py", "there is no file"),
        ("test_options.py::test_nothing_at_all", "there is no such test"),
        ("test_options.py::test_no_spelling_stands_twice", "does not speak of it"),
    ],
)
def test_a_row_without_a_proper_test_is_found(test: str, problem: str):
    row = Option(name="vae_of_no_use", kind=HONOURED[0].kind, help="Help.", test=test)

    assert problem in (complaint(row) or "")
