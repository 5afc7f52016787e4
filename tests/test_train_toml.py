"""The file behind --config_file, and the values that come of it, the command line and defaults."""

import json
import tomllib
from pathlib import Path

import pytest

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.config_file import key_lines
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.parts import adapter_choice
from anima_pipe.kohya.resolve import examine, resolve
from anima_pipe.kohya.train_toml import read_train_args

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
)


def write(folder: Path, text: str, name: str = "train_args.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def problem_of(folder: Path, text: str, **cli: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve("train", cli, write(folder, text))
    return str(caught.value)


def test_section_headings_do_not_matter(tmp_path):
    file = write(tmp_path, "seed = 1\n[a]\nnetwork_dim = 8\n[b.c]\nlearning_rate = 1e-4\n")
    assert read_train_args(file) == [
        ("seed", 1, 1),
        ("network_dim", 8, 3),
        ("learning_rate", 1e-4, 5),
    ]


def test_the_suffix_may_be_left_off(tmp_path):
    write(tmp_path, "seed = 1\n")
    assert resolve("train", {}, tmp_path / "train_args").value("seed") == 1
    write(tmp_path, "seed = 2\n", "v1.5.toml")
    assert resolve("train", {}, tmp_path / "v1.5").value("seed") == 2


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = write(tmp_path, "network_dim = 8\nseed = 3\n")
    resolved = resolve("train", {"network_dim": "32", "vae": None}, file)
    assert resolved.value("network_dim") == 32
    assert resolved.value("seed") == 3
    assert resolved.value("max_train_steps") == 1600
    assert resolved.given("network_dim") == "command line"
    assert resolved.given("seed") == "train_args.toml line 2"
    assert resolved.given("max_train_steps") is None
    assert resolved.given("vae") is None


def test_an_empty_text_means_not_set_and_can_take_back_what_the_file_sets(tmp_path):
    file = write(tmp_path, 'caption_prefix = "anime"\nreg_data_dir = ""\noptimizer_args = []\n')
    assert resolve("train", {}, file).value("caption_prefix") == "anime"
    assert resolve("train", {"caption_prefix": ""}, file).value("caption_prefix") is None


def test_list_options_become_dicts(tmp_path):
    file = write(
        tmp_path,
        'network_module = "networks.lokr_anima"\n'
        'network_args = ["lokr_factor=8", "lokr_full_matrix=True"]\n',
    )
    assert resolve("train", {}, file).value("network_args") == {
        "lokr_factor": 8,
        "lokr_full_matrix": True,
    }


@pytest.mark.parametrize(
    ("spelling", "value", "name"),
    [
        ("qwen", "a", "qwen3"),
        ("qwen3_path", "a", "qwen3"),
        ("anima_transformer", "a", "pretrained_model_name_or_path"),
        ("dit_path", "a", "pretrained_model_name_or_path"),
        ("vae_path", "a", "vae"),
        ("t5_tokenizer_path", "a", "t5_tokenizer_dir"),
    ],
)
def test_either_spelling_works(spelling: str, value: str, name: str):
    assert resolve("train", {spelling: value}).value(name) == Path(value)


def test_the_seeds_noise_levels_by_either_name():
    resolved = resolve(
        "train", {"anima_timestep_sampling": "logit_normal", "anima_flow_shift": "3.0"}
    )
    assert resolved.value("timestep_sampling") == "shift"
    assert resolved.value("discrete_flow_shift") == 3.0
    assert resolved.spelling("discrete_flow_shift") == "anima_flow_shift"
    assert resolved.warnings == ()


def test_two_spellings_of_one_value_agree_and_of_two_values_do_not(tmp_path):
    assert resolve("train", {"qwen": "a", "qwen3": "a"}).value("qwen3") == Path("a")
    text = 'qwen = "a"\nqwen3 = "b"\n'
    assert "line 2: qwen3 = b contradicts qwen (train_args.toml line 1) = a" in problem_of(
        tmp_path, text
    )


def test_a_key_with_two_values_in_two_sections_is_an_error(tmp_path):
    text = "[a]\nseed = 1\n[b]\nseed = 2\n"
    assert "line 4: seed = 2 contradicts seed (train_args.toml line 2) = 1" in problem_of(
        tmp_path, text
    )
    file = write(tmp_path, "[a]\nseed = 1\n[b]\nseed = 1\n")
    assert resolve("train", {}, file).value("seed") == 1


def test_a_misspelt_option_suggests_the_right_one(tmp_path):
    problem = problem_of(tmp_path, "\nlearning_rte = 1e-4\n")
    assert "train_args.toml line 2: there is no option learning_rte" in problem
    assert "did you mean learning_rate?" in problem


def test_a_key_of_another_tool_is_called_by_its_owner(tmp_path):
    problem = problem_of(tmp_path, 'model_train_type = "anima-lora"\n')
    assert "model_train_type is an option of lora-scripts" in problem


def test_a_key_of_another_tool_that_makes_no_other_adapter_is_warned_of(tmp_path):
    file = write(tmp_path, "seed = 1\nsample_cfg = 4\nfused_mlp = true\n")
    assert resolve("train", {}, file).warnings == (
        (
            "sample_cfg (train_args.toml line 2) changes nothing: it is an option of lora-scripts "
            "(SD-Trainer); write it behind --l in the file of sample_prompts"
        ),
        (
            "fused_mlp (train_args.toml line 3) changes nothing: it is an option of the "
            "anima-lora-fastpath fork; remove it"
        ),
    )


def test_all_problems_are_reported_together(tmp_path):
    text = 'learning_rate = "1e-4"\nnetwork_dimm = 4\nmixed_precision = "bf17"\nfull_fp16 = true\n'
    problem = problem_of(tmp_path, text, seed="one")
    assert problem.startswith("5 problems")
    for part in (
        "line 1: learning_rate: '1e-4' is not a number",
        "line 2: there is no option network_dimm",
        "line 3: mixed_precision: 'bf17' is unknown",
        "use one of no, fp16, bf16",
        "line 4: full_fp16 is refused: in fp16",
        "command line: seed: 'one' is not a whole number",
    ):
        assert part in problem


def test_a_refused_option_that_asks_for_nothing_passes(tmp_path):
    file = write(
        tmp_path,
        "fp8_base = false\nnoise_offset = 0\nblocks_to_swap = 0\nmax_timestep = 1000\n"
        'weighting_scheme = "none"\nloss_type = "l2"\ntext_encoder_lr = 0.0\nresume = ""\n',
    )
    assert resolve("train", {}, file).warnings == ()


def test_the_command_line_can_switch_off_what_the_file_asks_for(tmp_path):
    file = write(tmp_path, "full_fp16 = true\n")
    with pytest.raises(ConfigError, match="full_fp16 is refused"):
        resolve("train", {}, file)
    resolve("train", {"full_fp16": False}, file)


def test_what_changes_nothing_is_warned_of(tmp_path):
    file = write(tmp_path, "cache_latents = true\nxformers = false\nsdpa = true\n")
    warnings = resolve("train", {}, file).warnings
    assert len(warnings) == 2
    assert warnings[0].startswith("cache_latents (train_args.toml line 1) changes nothing:")
    assert warnings[1].startswith("sdpa (train_args.toml line 3) changes nothing:")


@pytest.mark.parametrize(
    "text",
    [
        "text_encoder_lr = 1e-5",
        'tokenizer_cache_dir = "tokenizers"',
        "max_token_length = 225",
        'max_token_length = "75"',
        "clip_skip = 2",
        "min_snr_gamma = 5",
        "blocks_to_swap = 20",
        "torch_compile = true",
        'huggingface_repo_id = "me/fox"',
        'attn_mode = "sageattn"',
        'attn_mode = "another"',
    ],
)
def test_what_makes_no_other_adapter_is_never_refused(tmp_path, text):
    (warning,) = resolve("train", {}, write(tmp_path, text + "\n")).warnings
    assert warning.startswith(f"{text.split()[0]} (train_args.toml line 1) changes nothing: ")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (["network_dim=32"], "network_args network_dim=32: network_dim is an option of its own"),
        (["learning_rate=1"], "learning_rate is an option of its own"),
        (["dropout=0.1"], "network_args dropout=0.1 contradicts network_dropout"),
        (["train_norm=true"], "network_args train_norm=True contradicts train_norm"),
    ],
)
def test_network_args_say_nothing_that_an_option_says_otherwise(tmp_path, written, problem):
    text = f"network_args = {written}\nnetwork_dropout = 0.2\ntrain_norm = false\n"
    assert problem in problem_of(tmp_path, text)


def test_network_args_may_say_what_an_option_says_too(tmp_path):
    text = 'network_args = ["dropout=0.2", "train_norm=no"]\n'
    file = write(tmp_path, text + "network_dropout = 0.2\ntrain_norm = false\n")
    assert resolve("train", {}, file).warnings == ()


def test_network_args_that_make_no_other_adapter_are_warned_of(tmp_path):
    text = 'network_args = ["conv_dim=8", "loraplus_text_encoder_lr_ratio=4"]\n'
    resolved = resolve("train", {}, write(tmp_path, text))
    place = "network_args (train_args.toml line 1)"
    assert resolved.warnings == (
        f"{place}: conv_dim changes nothing: Anima has no convolutions",
        f"{place}: loraplus_text_encoder_lr_ratio changes nothing: Qwen3 is frozen",
    )
    assert "conv_dim" not in adapter_choice(resolved).arguments


def test_what_may_differ_without_a_state_is_warned_of():
    (warning,) = resolve("train", {"resume_allow": ("learning_rate",)}).warnings
    assert warning == "resume_allow (command line) has no effect without resume"


@pytest.mark.parametrize(
    ("text", "taken"),
    [('sample_sampler = "euler_a"', "euler"), ('save_model_as = "ckpt"', "safetensors")],
)
def test_a_value_that_makes_no_other_adapter_is_replaced_with_a_warning(tmp_path, text, taken):
    name, _, given = text.replace('"', "").partition(" = ")
    resolved = resolve("train", {}, write(tmp_path, text + "\n"))
    assert resolved.value(name) == taken
    (warning,) = resolved.warnings
    assert f"{name} (train_args.toml line 1) = {given} is taken as {taken}: " in warning


def test_spellings_of_what_changes_nothing_may_contradict_each_other(tmp_path):
    file = write(tmp_path, "xformers = true\nxfomers = false\n")
    assert len(resolve("train", {}, file).warnings) == 1


def test_an_option_without_effect_beside_another_is_warned_of():
    resolved = resolve("train", {"discrete_flow_shift": "3.0", "timestep_sampling": "sigmoid"})
    assert resolved.warnings == (
        "discrete_flow_shift (command line) has no effect beside timestep_sampling = sigmoid",
    )
    both = resolve("train", {"max_train_steps": "10", "max_train_epochs": "2"})
    assert both.warnings == (
        "max_train_steps (command line) has no effect beside max_train_epochs",
    )


def test_a_constant_rate_takes_no_warmup(tmp_path):
    problem = problem_of(tmp_path, "lr_warmup_steps = 10\n")
    assert "line 1: lr_scheduler constant takes no warmup, but lr_warmup_steps is 10" in problem


def test_a_dataset_file_here_and_beside_the_config_is_warned_of(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "dataset.toml").touch()
    file = write(tmp_path, 'dataset_config = "dataset.toml"\n')
    beside = tmp_path / "dataset.toml"
    monkeypatch.chdir(tmp_path / "here")
    assert resolve("train", {}, file).warnings == ()
    beside.touch()
    (warning,) = resolve("train", {}, file).warnings
    assert f"is dataset.toml of the current folder, not {beside}" in warning
    monkeypatch.chdir(tmp_path)
    assert resolve("train", {}, file).warnings == ()


def test_a_caching_stage_reads_the_training_file_but_not_its_refusals(tmp_path):
    file = write(tmp_path, 'vae = "v"\nfull_fp16 = true\nlearning_rate = 1e-4\nresolution = 512\n')
    resolved = resolve("cache-latents", {}, file)
    assert resolved.value("vae") == Path("v")
    assert resolved.dataset_fallbacks() == {"resolution": (512, 512)}
    with pytest.raises(KeyError):
        resolved.value("learning_rate")
    with pytest.raises(ConfigError, match="there is no option vaee"):
        resolve("cache-latents", {}, write(tmp_path, 'vaee = "v"\n'))


def test_a_command_refuses_options_of_others_on_its_command_line():
    with pytest.raises(ConfigError, match="encode-text does not take --learning_rate"):
        resolve("encode-text", {"learning_rate": "1"})


def test_a_dataset_beside_the_file_is_found(tmp_path):
    write(tmp_path, "", "dataset.toml")
    file = write(tmp_path, 'dataset_config = "dataset.toml"\noutput_dir = "out"\n')
    resolved = resolve("train", {}, file)
    assert resolved.value("dataset_config") == tmp_path / "dataset.toml"
    assert resolved.value("output_dir") == Path("out")


def test_all_missing_files_are_asked_for_at_once():
    with pytest.raises(ConfigError) as caught:
        resolve("train", {"vae": "v"}).require("vae", "qwen3", "t5_tokenizer_dir")
    problem = str(caught.value)
    assert problem.startswith("2 problems")
    assert "Qwen path is required. Set --qwen." in problem
    assert "T5 tokenizer directory is required. Set --t5_tokenizer_dir." in problem


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[datasets]]\nresolution = 512\n", "give it as --dataset_config"),
        (
            '[model]\ntransformer_path = "a"\n[training]\nepochs = 1\n',
            "anima-pipe convert-config ",
        ),
        ("[lora]\nlora_rank = 4\n", "root-style file ([lora] with lora_rank)"),
        ("seed = \n", "is not TOML"),
        ('vae = "C:\\Users\\a"\n', "Windows paths in single quotes"),
    ],
)
def test_files_of_another_kind_are_told_apart(tmp_path, text: str, part: str):
    assert part in problem_of(tmp_path, text)


def test_kohyas_own_section_names_are_not_taken_for_root_style(tmp_path):
    file = write(tmp_path, '[model]\nvae = "v"\n[training]\nseed = 1\n[output]\noutput_dir = "o"\n')
    assert resolve("train", {}, file).value("seed") == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml"):
        resolve("train", {}, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is JSON"):
        resolve("train", {}, write(tmp_path, "{}", "train_args.json"))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'output_name = "\xe9"\n')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        resolve("train", {}, latin)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    file = tmp_path / "notepad.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 5\r\nnetwork_dim = 0\r\n")
    with pytest.raises(ConfigError, match=r"notepad.toml line 2: network_dim: 0 is too small"):
        resolve("train", {}, file)


AWKWARD = '''
# a = 1
first = "a # = [ b" # comment
"quoted key" = 'single \\'
a.b = 1
text = """one
[not.a.table]
key = 2
"""
raw = \'\'\'
]\'\'\'
after = [ # comment
  1, [2,
  3], {x = 4}
  # between
]
inline = { p = 1, q = { "r" = [1,
2] }, s = 2020-01-01 07:00:00 }
[table . "x.y"] # comment
key = 1

[[datasets]]
n = 1
  [[datasets.subsets]]
  image_dir = "a"
  [[datasets.subsets]]
  image_dir = "b"
[[datasets]]
  [[datasets.subsets]]
  image_dir = "c"
  [datasets.subsets.more]
  k = 1
'''


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values that are neither tables nor arrays."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for key, item in enumerate(value) for leaf in leaves(item, (*path, key))]
    return [path]


def test_every_key_of_an_awkward_file_has_a_line():
    assert [leaf for leaf in leaves(tomllib.loads(AWKWARD)) if leaf not in key_lines(AWKWARD)] == []


def test_lines_of_keys_are_found_in_awkward_files():
    lines = key_lines(AWKWARD)
    source = AWKWARD.splitlines()
    expected = {
        ("first",): 'first = "a # = [ b" # comment',
        ("quoted key",): "\"quoted key\" = 'single \\'",
        ("a", "b"): "a.b = 1",
        ("text",): 'text = """one',
        ("raw",): "raw = '''",
        ("after",): "after = [ # comment",
        ("after", 2, "x"): "3], {x = 4}",
        ("inline", "q", "r"): 'inline = { p = 1, q = { "r" = [1,',
        ("inline", "s"): "2] }, s = 2020-01-01 07:00:00 }",
        ("table", "x.y"): '[table . "x.y"] # comment',
        ("table", "x.y", "key"): "key = 1",
        ("datasets", 0): "[[datasets]]",
        ("datasets", 0, "n"): "n = 1",
        ("datasets", 0, "subsets", 1, "image_dir"): 'image_dir = "b"',
        ("datasets", 1, "subsets", 0, "image_dir"): 'image_dir = "c"',
        ("datasets", 1, "subsets", 0, "more", "k"): "k = 1",
    }
    assert {path: source[lines[path] - 1].strip() for path in expected} == expected
    assert not any("not" in path or path == ("key",) for path in lines)


@pytest.mark.parametrize(
    "config",
    [c for c in PUBLISHED if c["form"] in ("toml", "cli")],
    ids=lambda config: config["id"],
)
def test_a_published_config_passes_or_fails_by_names_that_its_author_knows(config, tmp_path):
    args = config["train_args"]
    if config["form"] == "cli":
        typed = {name: _as_typed(value) for name, value in args.items()}
        resolved, findings = examine("train", typed)
    else:
        resolved, findings = examine("train", {}, write(tmp_path, _as_toml(args)))
    said = [*(finding.problem for finding in findings), *resolved.warnings]
    named = [
        name
        for name in args
        if any(f" {name} " in f" {text} " or f"{name}:" in text for text in said)
    ]
    assert all(any(name in finding.problem for name in args) for finding in findings)
    unknown = [name for name in args if find_option(name) is None]
    assert [name for name in unknown if name not in named] == []


def _as_typed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_toml(args: dict[str, object]) -> str:
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in args.items())


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value)
