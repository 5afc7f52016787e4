"""`anima-pipe config`: explaining keys, checking files, schemas for editors."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from anima_pipe import demo
from anima_pipe.adapters.adapter import TableRules
from anima_pipe.adapters.registry import KINDS
from anima_pipe.adapters.rules import RankRules, RateRules
from anima_pipe.adapters.settings import SAID_BY_THE_CALLER, field_types
from anima_pipe.adapters.targets import TargetRules
from anima_pipe.cli.main import main
from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.options import OPTIONS, find_option
from anima_pipe.kohya.schema import dataset_schema, train_args_schema
from anima_pipe.kohya.table.network_args import NETWORK_ARG_BY_SPELLING, NETWORK_ARGS

ROOT = Path(__file__).parent.parent
DEMO = demo.options()


def config(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["config", *map(str, arguments)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


DATASET = '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "pictures"\n'
TRAIN_ARGS = """output_dir = "out"
learning_rate = 1e-4
"""
MODELS = "".join(
    f'{name} = "{DEMO[name]}"\n' for name in ("pretrained_model_name_or_path", "vae", "qwen3")
)
"""What a file of options names that leaves no model file to the command line."""


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
def test_every_option_is_explained_by_every_spelling(row):
    explained = {config("explain", spelling).stdout for spelling in row.spellings}
    (text,) = explained
    assert row.help in text
    assert all(f"--{spelling}" in text for spelling in row.spellings)


@pytest.mark.parametrize("name", DATASET_KEYS)
def test_every_key_of_a_dataset_is_explained_with_where_it_stands(name: str):
    text = config("explain", name).stdout
    assert all(level in text for level in DATASET_KEYS[name].levels)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("--keep-tokens", "keep_tokens: Tags at the front"),
        ("--no-train_norm", "train_norm: "),
        ("timestep_sampling", "logit_normal means shift"),
        ("full_fp16", "refused: in fp16"),
        ("cache_latents", "changes nothing here: latents are always cached"),
        ("discrete_flow_shift", "acts with  timestep_sampling = shift"),
        ("model_train_type", "an option of lora-scripts"),
    ],
)
def test_an_explanation_says_what_becomes_of_the_option(key: str, part: str):
    assert part in config("explain", key).stdout


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("memory", {"gradient_checkpointing (option)", "fp8_base (option)"}),
        ("Dropout", {"network_dropout (option)", "rank_dropout (network_args)"}),
        ("dropout", {"caption_dropout_rate (option)", "module_dropout (network_args)"}),
        ("rank", {"network_dim (option)", "network_reg_dims (network_args)"}),
        ("dora", {"wd_on_output (network_args)"}),
        ("loraplus", {"loraplus_lr_ratio (network_args)"}),
        ("picture", {"image_dir (dataset.toml)"}),
        ("swap", {"blocks_to_swap (option, changes nothing)"}),
    ],
)
def test_a_word_lists_what_concerns_it(word: str, found: set[str]):
    lines = config("explain", word).stdout.splitlines()
    assert found <= {line.strip().partition(":")[0] for line in lines}


def test_a_word_lists_nothing_that_it_does_not_concern():
    said = config("explain", "loraplus").stdout
    assert "network_reg_dims" not in said
    assert "learning_rate" not in said


def test_keys_of_network_args_are_listed_by_network():
    said = config("explain", "network_args").stdout
    everywhere, _, rest = said.partition("\nnetworks.lora_anima, lycoris.kohya:\n")
    assert "network_reg_dims: " in everywhere.partition("every network:")[2]
    lora, _, rest = rest.partition("\nnetworks.lokr_anima, networks.lokr, lycoris.kohya:\n")
    assert "pissa: " in lora
    lokr, _, tlora = rest.partition("\nnetworks.tlora_anima:\n")
    assert "lokr_factor, factor: " in lokr
    assert "tlora_min_rank, min_rank: " in tlora
    assert "pissa" not in lokr + tlora


@pytest.mark.parametrize("name", [n for n in NETWORK_ARG_BY_SPELLING if not find_option(n)])
def test_every_key_of_network_args_is_explained_by_every_spelling(name: str):
    text = config("explain", name).stdout
    assert NETWORK_ARG_BY_SPELLING[name].help in text
    assert 'network_args = ["' in text


def test_a_key_of_network_args_that_changes_nothing_is_explained():
    assert "changes nothing: Anima has no convolutions" in config("explain", "conv_dim").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_of_network_args_are_those_that_the_adapter_takes(kind: str):
    chosen = KINDS[kind]
    classes = (TargetRules, RankRules, RateRules, TableRules, chosen.config)
    taken = {name for each in classes for name in field_types(each)} - SAID_BY_THE_CALLER.keys()
    told = {s for row in NETWORK_ARGS.values() if kind in row.kinds for s in row.spellings}
    assert told == taken | chosen.other_names.keys()


def test_an_unknown_key_suggests_the_nearest():
    ended = config("explain", "image_dri")
    assert ended.exit_code == 2
    assert "there is no option image_dri" in ended.stderr
    assert "did you mean image_dir?" in ended.stderr


def test_files_in_order_pass():
    files = [
        write("any.toml", TRAIN_ARGS + MODELS),
        write("other.toml", DATASET),
        write("prompts.txt", "1girl --w 512\n"),
    ]
    ended = config("check", *files)
    assert ended.exit_code == 0
    assert "any.toml (options of the training): ok" in ended.stdout
    assert "other.toml (dataset): ok" in ended.stdout
    assert "prompts.txt (sample prompts): ok" in ended.stdout


def test_all_findings_of_all_files_are_listed_with_file_line_and_key():
    ended = config(
        "check",
        write("a.toml", 'seed = "x"\nnetwork_dimm = 4\n'),
        write("b.toml", DATASET.replace("resolution", "resolutoin")),
        write("c.txt", "1girl --w 100\n1girl --q 1\n"),
        write("d.toml", "a ="),
    )
    assert ended.exit_code == 2
    for part in (
        "a.toml line 1: seed: 'x' is not a whole number",
        "a.toml line 2: there is no option network_dimm",
        "Fix: did you mean network_dim?",
        "b.toml line 2: datasets[0].resolutoin: there is no such key",
        "c.txt line 1: width 100 is not a multiple of 16",
        "d.toml is not TOML",
    ):
        assert part in ended.stdout


def test_options_fill_the_gaps_of_a_dataset_beside_them():
    dataset = write("d.toml", DATASET.replace("resolution = 512\n", ""))
    assert "resolution is required" in config("check", dataset).stdout
    options = write("t.toml", f'resolution = 512\noutput_dir = "out"\n{MODELS}')
    assert config("check", dataset, options).exit_code == 0


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ("", "5e-5"),
        ('optimizer_type = "Prodigy"\n', "1"),
        ('optimizer_type = "DAdaptAdam"\n', "1"),
        ("unet_lr = 1e-4\n", None),
        ("learning_rate = 2e-6\n", None),
        ('optimizer_type = "Adafactor"\nlr_scheduler = "adafactor"\n', None),
    ],
)
def test_a_learning_rate_that_is_not_set_is_warned_of_with_one_to_set(more: str, rate: str | None):
    said = config("check", write("t.toml", f'output_dir = "out"\n{more}')).stdout
    assert ("learning_rate is not set: 2e-06" in said) == (rate is not None)
    assert rate is None or f"set learning_rate = {rate}\n" in said


def test_what_only_this_machine_lacks_is_a_warning():
    files = [
        write("t.toml", 'vae = "/nowhere/vae.safetensors"\n'),
        write("d.toml", DATASET.replace("pictures", "/nowhere/pictures")),
    ]
    ended = config("check", *files)
    assert ended.exit_code == 2
    assert "warning: t.toml line 1: vae: there is no /nowhere/vae.safetensors" in ended.stdout
    assert "warning: d.toml line 4: datasets[0].subsets[0].image_dir" in ended.stdout


def test_what_a_run_here_would_stop_at_is_said_in_the_end():
    lacking = write("t.toml", f'llm_adapter_path = "/nowhere/a.safetensors"\n{TRAIN_ARGS}{MODELS}')
    ended = config("check", lacking, write("d.toml", DATASET))
    assert ended.exit_code == 2
    assert "t.toml (options of the training): in order, but it names what is not" in ended.stdout
    assert ended.stdout.endswith("a run here would stop: 1 thing missing, see above\n")
    whole = config("check", write("t.toml", TRAIN_ARGS + MODELS), write("d.toml", DATASET))
    assert whole.stdout.endswith("\n2 files in order\n")
    wrong = config("check", write("t.toml", "seed = -1\nnetwork_dim = 0\n"))
    assert wrong.stdout.endswith("\nto be mended: 2 problems\n")


def test_a_folder_of_pictures_is_a_dataset_as_in_training(folder: Path):
    (folder / "pictures" / "10_fox").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / "pictures" / "10_fox" / "fox.png")
    options = f"{TRAIN_ARGS}{MODELS}resolution = 512\n"
    ended = config("check", write("t.toml", options), folder / "pictures")
    assert f"{folder / 'pictures'} (dataset): ok" in ended.stdout
    assert ended.exit_code == 0


def test_files_that_options_name_are_examined_too():
    write("d.toml", DATASET.replace("resolution = 512", "resolutoin = 512"))
    write("p.txt", "1girl --w 100\n")
    named = 'dataset_config = "d.toml"\nsample_prompts = "p.txt"\nresolution = 512\n'
    ended = config("check", write("t.toml", TRAIN_ARGS + named))
    assert ended.exit_code == 2
    assert "d.toml line 2: datasets[0].resolutoin: there is no such key" in ended.stdout
    assert "p.txt line 1: width 100 is not a multiple of 16" in ended.stdout
    assert "resolution is required" not in ended.stdout


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('network_args = ["rank_dropuot=0.1"]\n', "t.toml line 1: adapter kind 'lora' has no"),
        ('network_args = ["lokr_factor=8"]\n', "'lora' has no setting 'lokr_factor'"),
        ('optimizer_type = "AdamV"\n', "t.toml line 1: unknown optimizer_type 'AdamV'"),
        ('optimizer_args = ["beta=0.9"]\n', "t.toml line 1: optimizer_args do not fit AdamW"),
        (
            'lr_scheduler_args = ["powre=2"]\n',
            "t.toml line 1: lr_scheduler_args do not fit constant",
        ),
        ('lr_scheduler = "piecewise_constant"\n', "t.toml line 1: lr_scheduler_args do not fit"),
        ('lr_scheduler_type = "StepLR"\n', "StepLR: step_size is missing"),
        (
            'lr_scheduler = "warmup_stable_decay"\nlr_warmup_steps = 0.5\nlr_decay_steps = "60%"\n',
            "lr_warmup_steps 50% and lr_decay_steps 60% are more than the whole run",
        ),
    ],
)
def test_arguments_are_checked_by_the_parts_that_take_them(text: str, part: str):
    ended = config("check", write("t.toml", text))
    assert ended.exit_code == 2
    assert part in ended.stdout


def test_a_warmup_beside_a_constant_rate_is_one_problem():
    text = 'lr_scheduler = "constant"\nlr_warmup_steps = "10%"\n'
    ended = config("check", write("t.toml", text))
    assert "t.toml line 2: lr_scheduler constant takes no warmup" in ended.stdout
    assert "lr_warmup_steps is 10%" in ended.stdout
    assert ended.stdout.endswith("to be mended: 1 problem\n")


def test_a_learning_rate_that_is_no_number_is_not_called_unset():
    ended = config("check", write("t.toml", 'learning_rate = "fast"\n'))
    assert "learning_rate: 'fast' is not a number" in ended.stdout
    assert "learning_rate is not set" not in ended.stdout


def test_a_package_that_is_not_installed_is_a_warning():
    ended = config("check", write("t.toml", 'optimizer_type = "not_installed.Fast"\n'))
    assert ended.exit_code == 2
    assert "warning: t.toml line 1: optimizer Fast is in the package not_installed" in ended.stdout


def test_what_has_no_effect_is_a_warning():
    text = f"{TRAIN_ARGS}cache_latents = true\n{MODELS}"
    ended = config("check", write("t.toml", text), write("d.toml", DATASET))
    assert ended.exit_code == 0
    assert "warning: cache_latents (t.toml line 3) changes nothing" in ended.stdout


def test_what_is_left_to_the_command_line_is_missing_as_it_would_be_in_a_run():
    """The run that the check judges ends with the same code."""
    file = write("t.toml", TRAIN_ARGS)
    ended = config("check", file)
    run = CliRunner().invoke(main, ["train", "--config_file", str(file)])
    assert ended.exit_code == run.exit_code == 2
    missing = ("pretrained_model_name_or_path", "vae", "qwen3", "dataset_config")
    assert f"t.toml leaves {', '.join(missing)} to the command line" in ended.stdout
    assert "anima-pipe fetch-models" in ended.stdout
    assert "output_dir" not in ended.stdout
    assert ended.stdout.endswith("a run here would stop: 4 things missing, see above\n")


def test_encoders_are_not_missing_where_nothing_is_to_be_encoded():
    ended = config("check", write("t.toml", TRAIN_ARGS + "auto_cache = false\n"))
    assert "leaves pretrained_model_name_or_path, dataset_config to the" in ended.stdout


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        (
            "old.toml",
            "[model]\ntransformer_path = 'a'\n[training]\nepochs = 1\n",
            "`anima-pipe convert-config old.toml`",
        ),
        ("preset.json", '{"LoRA_type": "Anima"}', "`anima-pipe convert-config preset.json`"),
    ],
)
def test_a_file_to_be_converted_names_the_converter(name: str, text: str, remedy: str):
    ended = config("check", write(name, text))
    assert ended.exit_code == 2
    assert remedy in ended.stdout


def test_a_missing_file_is_a_finding():
    ended = config("check", "nowhere.toml")
    assert ended.exit_code == 2
    assert "cannot read nowhere.toml" in ended.stdout


def fits(value: object, schema: dict, root: dict) -> bool:
    """Whether a value fits a JSON Schema, of the few words that ours use."""
    if schema.get("$ref") == "#":
        schema = root
    kinds = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "array": list,
        "object": dict,
    }
    wanted = schema.get("type")
    if wanted and (
        not isinstance(value, kinds[wanted])
        or (isinstance(value, bool) and wanted in ("integer", "number"))
    ):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "oneOf" in schema and sum(fits(value, one, root) for one in schema["oneOf"]) != 1:
        return False
    if isinstance(value, int | float) and "minimum" in schema and value < schema["minimum"]:
        return False
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"], root) for item in value)
    if isinstance(value, dict) and "properties" in schema:
        rest = schema["additionalProperties"]
        return all(name in value for name in schema.get("required", ())) and all(
            fits(item, schema["properties"][key], root)
            if key in schema["properties"]
            else bool(rest) and fits(item, rest, root)
            for key, item in value.items()
        )
    return True


def test_the_schemas_are_printed_as_json():
    assert json.loads(config("schema").stdout) == json.loads(json.dumps(train_args_schema()))
    assert json.loads(config("schema", "dataset").stdout) == json.loads(
        json.dumps(dataset_schema())
    )


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.toml")), ids=lambda p: p.name)
def test_shipped_files_fit_the_schema(path: Path):
    schema = dataset_schema() if "dataset" in path.stem else train_args_schema()
    assert fits(tomllib.loads(path.read_text(encoding="utf-8")), schema, schema)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("[anything]\nlearning_rate = 1e-4\n", True),
        ("learning_rte = 1e-4\n", False),
        ('learning_rate = "1e-4"\n', False),
        ("network_dim = 0\n", False),
        ('mixed_precision = "bf17"\n', False),
        ("full_fp16 = false\n", True),
        ("full_fp16 = true\n", False),
        ("resolution = [832, 1216]\n", True),
        ('resolution = "832,1216"\n', True),
        ("shuffle_caption = 1\n", False),
    ],
)
def test_the_schema_underlines_what_training_would_refuse(text: str, good: bool):
    schema = train_args_schema()
    assert fits(tomllib.loads(text), schema, schema) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (DATASET, True),
        ("[general]\nbatch_size = 1\n" + DATASET, True),
        (DATASET + "batch_size = 1\n", False),
        (DATASET + "num_repeat = 1\n", False),
        ("[general]\nbatch_size = 1\n", False),
    ],
)
def test_the_datasets_schema_knows_the_levels(text: str, good: bool):
    schema = dataset_schema()
    assert fits(tomllib.loads(text), schema, schema) is good


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.toml", '[prompt]\n[[prompt.subset]]\nprompt = "a"\nwidth = 100\n'),
        ("prompts.json", '["a",\n\n\n"b --w 100"]'),
    ],
)
def test_prompts_in_toml_and_json_are_known_for_what_they_are(folder, name, content):
    (folder / name).write_text(content)
    ended = config("check", name)
    assert ended.exit_code == 2
    assert f"{name} (sample prompts): 1 to be mended" in ended.stdout
    assert "line 4: width 100" in ended.stdout
