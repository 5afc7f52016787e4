"""The seed's root-style files and kohya_ss GUI's presets, converted to Kohya's two files."""

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anima_pipe.cli.main import main
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.kohya.resolve import resolve

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "convert_anima_root_to_kohya.py"
PUBLISHED = {
    config["id"]: config
    for config in json.loads(
        (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
    )
}


def convert(source: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["convert-config", "--input", str(source), *arguments])


def convert_text(folder: Path, text: str) -> tuple[dict, dict, str]:
    """The new files as tables, and what was printed."""
    source = folder / "old.toml"
    source.write_text(text, encoding="utf-8")
    result = convert(source, "--output_dir", str(folder / "new"))
    assert result.exit_code == 0, result.stderr
    return (
        read(folder / "new" / "train_args.toml"),
        read(folder / "new/dataset.toml"),
        result.stdout,
    )


def read(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def unmapped(printed: str) -> set[str]:
    """The keys listed as unmapped: lines of keys with the reason in parentheses."""
    lines = [line.partition("  (") for line in printed.splitlines() if line.startswith("  ")]
    return {key.strip() for keys, reason, _ in lines if reason for key in keys.split(",")}


@dataclass(frozen=True, kw_only=True)
class Example:
    old: str
    train_args: dict[str, object]
    dataset: dict[str, object]
    unmapped: set[str]


WHOLE = Example(
    old="""
[model]
transformer_path = "/m/anima.safetensors"
vae_path = "/m/vae.safetensors"
text_encoder_path = "/m/qwen"
t5_tokenizer_dir = "/m/t5"
[dataset]
data_dir = "/d/img"
repeats = 2
resolution = 1024
min_reso = 512
max_reso = 1536
reso_step = 64
max_ar = 4.0
shuffle_caption = true
keep_tokens = 1
keep_tokens_separator = "|||"
caption_extension = ".txt"
flip_augment = true
cache_latents = true
cache_dir = "/c"
[training]
max_steps = 10
epochs = 3
batch_size = 2
grad_accum = 4
learning_rate = 1e-4
mixed_precision = "bf16"
grad_checkpoint = true
num_workers = 2
persistent_data_loader_workers = true
xformers = true
seed = 42
seq_len = 256
noise_offset = 0.05
caption_tag_dropout_rate = 0.1
resume = "/s"
lr_scheduler = "cosine"
lr_min_ratio = 0.1
lr_warmup_ratio = 0.05
lr_scheduler_num_cycles = 0.5
text_cache_size = 5
log_every = 1
[lora]
network_type = "lokr"
lora_name = "fallback_name"
lora_rank = 100000
lora_alpha = 16
lora_dropout = 0.1
lora_targets = "q_proj,k_proj"
lokr_factor = 8
lokr_full_matrix = true
lokr_decompose_both = false
lokr_rank_dropout = 0.1
lokr_module_dropout = 0.2
[optimizer]
type = "radam_schedulefree"
weight_decay = 0.01
eps = 1e-8
beta1 = 0.9
beta2 = 0.99
[output]
output_dir = "/o"
save_every = 200
save_state = true
save_state_every = 500
[monitor]
[wandb]
""",
    train_args={
        "anima_transformer": "/m/anima.safetensors",
        "pretrained_model_name_or_path": "/m/anima.safetensors",
        "vae": "/m/vae.safetensors",
        "qwen": "/m/qwen",
        "t5_tokenizer_dir": "/m/t5",
        "network_module": "networks.lokr_anima",
        "network_dim": 100000,
        "network_alpha": 16,
        "network_dropout": 0.1,
        "network_args": [
            "target_modules=q_proj,k_proj",
            "lokr_factor=8",
            "lokr_full_matrix=True",
            "lokr_decompose_both=False",
            "lokr_rank_dropout=0.1",
            "lokr_module_dropout=0.2",
        ],
        "output_dir": "/o",
        "output_name": "fallback_name",
        "save_every_n_steps": 200,
        "save_state": True,
        "max_train_steps": 10,
        "gradient_accumulation_steps": 4,
        "learning_rate": 0.0001,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "max_data_loader_n_workers": 2,
        "persistent_data_loader_workers": True,
        "xformers": True,
        "seed": 42,
        "anima_seq_len": 256,
        "anima_noise_offset": 0.05,
        "caption_tag_dropout_rate": 0.1,
        "resume": "/s",
        "lr_scheduler": "cosine_with_min_lr",
        "lr_scheduler_min_lr_ratio": 0.1,
        "lr_warmup_steps": 0.05,
        "lr_scheduler_num_cycles": 0.5,
        "optimizer_type": "RAdamScheduleFree",
        "optimizer_args": ["weight_decay=0.01", "eps=1e-08", "betas=(0.9,0.99)"],
        "cache_latents": True,
        "dataset_config": "dataset.toml",
    },
    dataset={
        "general": {
            "shuffle_caption": True,
            "keep_tokens": 1,
            "keep_tokens_separator": "|||",
            "caption_extension": ".txt",
            "flip_aug": True,
            "caption_tag_dropout_rate": 0.1,
        },
        "datasets": [
            {
                "resolution": 1024,
                "batch_size": 2,
                "enable_bucket": True,
                "min_bucket_reso": 512,
                "max_bucket_reso": 1536,
                "bucket_reso_steps": 64,
                "subsets": [{"image_dir": "/d/img", "num_repeats": 2}],
            }
        ],
    },
    unmapped={
        "dataset.cache_dir",
        "dataset.max_ar",
        "monitor",
        "output.save_state_every",
        "training.log_every",
        "training.text_cache_size",
        "wandb",
    },
)

LEAST = Example(
    old='[model]\ntransformer_path = "/m/anima"\nt5_tokenizer_path = "/m/t5"\n[training]\n',
    train_args={
        "anima_transformer": "/m/anima",
        "pretrained_model_name_or_path": "/m/anima",
        "t5_tokenizer_dir": "/m/t5",
        "network_module": "networks.lora_anima",
        "dataset_config": "dataset.toml",
    },
    dataset={"datasets": [{"subsets": [{"num_repeats": 1}]}]},
    unmapped=set(),
)

HALF_SET = Example(
    old="""
[model]
t5_tokenizer_dir = "/t5"
[dataset]
data_dir = "/d/img"
resolution = 768
max_ar = 2.0
[training]
epochs = 5
lr_scheduler = "constant"
lr_warmup_steps = 0
lr_warmup_ratio = 0.1
learning_rate = 0.0
grad_checkpoint = false
xformers = false
[lora]
network_type = "LoRA"
lora_rank = 32
lokr_factor = 4
lora_name = "nm"
[optimizer]
type = "AdamW8bit"
beta1 = 0.9
[output]
output_dir = "/o"
""",
    train_args={
        "t5_tokenizer_dir": "/t5",
        "network_module": "networks.lora_anima",
        "network_dim": 32,
        "network_args": ["lokr_factor=4"],
        "output_dir": "/o",
        "output_name": "nm",
        "max_train_epochs": 5,
        "learning_rate": 0.0,
        "gradient_checkpointing": False,
        "xformers": False,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer_type": "AdamW8bit",
        "dataset_config": "dataset.toml",
    },
    dataset={
        "datasets": [
            {
                "resolution": 768,
                "enable_bucket": True,
                "subsets": [{"image_dir": "/d/img", "num_repeats": 1}],
            }
        ]
    },
    # The seed drops beta1 without a word.
    unmapped={"dataset.max_ar", "optimizer.beta1"},
)

UNKNOWN = Example(
    old="""
[model]
t5_tokenizer_dir = "/t5"
[dataset]
repeats = 0
shuffle_caption = false
[training]
max_steps = 0
lr_scheduler = "cosine"
lr_scheduler_num_cycles = 2
caption_tag_dropout_rate = 0.0
unknown_key = 5
[extra_section]
a = 1
[lora]
network_type = "loha"
lora_name = "x"
""",
    train_args={
        "t5_tokenizer_dir": "/t5",
        "network_module": "networks.lora_anima",
        "caption_tag_dropout_rate": 0.0,
        "lr_scheduler": "cosine",
        "lr_scheduler_num_cycles": 2.0,
        "dataset_config": "dataset.toml",
    },
    dataset={
        "general": {"shuffle_caption": False, "caption_tag_dropout_rate": 0.0},
        "datasets": [{"subsets": [{"num_repeats": 1}]}],
    },
    # The seed drops all three without a word.
    unmapped={"extra_section", "lora.lora_name", "training.unknown_key"},
)


@pytest.mark.parametrize("example", [WHOLE, LEAST, HALF_SET, UNKNOWN])
def test_root_style_keys_go_where_the_seed_puts_them_in_its_order(example: Example, tmp_path):
    train_args, dataset, printed = convert_text(tmp_path, example.old)

    assert list(train_args.items()) == list(example.train_args.items())
    assert json.dumps(dataset) == json.dumps(example.dataset)
    assert unmapped(printed) == example.unmapped


def test_what_training_would_refuse_is_said_and_written_into_the_file(tmp_path):
    _, _, printed = convert_text(tmp_path, WHOLE.old)

    text = (tmp_path / "new" / "train_args.toml").read_text()
    for said in (printed, text):
        assert "optimizer=RAdamScheduleFree requires lr_scheduler=constant" in said
        assert "optimizer=RAdamScheduleFree requires lr_warmup_steps=0" in said
        assert "set lr_scheduler to constant" in said


def test_lines_that_the_objections_name_are_those_of_the_file(tmp_path):
    convert_text(tmp_path, HALF_SET.old)

    lines = (tmp_path / "new" / "train_args.toml").read_text().splitlines()
    (objection,) = [line for line in lines if "has no setting 'lokr_factor'" in line]
    number = int(objection.split("train_args.toml line ")[1].split(":")[0])
    assert lines[number - 1] == 'network_args = ["lokr_factor=4"]'


@pytest.mark.parametrize(
    ("old", "note"),
    [
        (WHOLE.old, "training.epochs = 3 had no effect beside max_steps = 10"),
        (WHOLE.old, "cosine_with_min_lr takes half of it"),
        (HALF_SET.old, "training.lr_warmup_ratio = 0.1 had no effect"),
        (UNKNOWN.old, "lora.network_type loha becomes networks.lora_anima"),
    ],
)
def test_what_changed_on_the_way_is_said(old: str, note: str, tmp_path):
    assert note in convert_text(tmp_path, old)[2]


@pytest.mark.parametrize(
    ("old", "problem"),
    [
        ("[model]\n", "Expected sections: [model], [training]."),
        ("model = 1\n[training]\n", "Input config is not a valid root-style Anima TOML."),
        ("[model]\n[training]\n", "Input config is missing model.t5_tokenizer_dir"),
        ('[model]\nvae = "v"\n[training]\nseed = 1\n', "old.toml needs no conversion"),
        ("a = ", "is not TOML"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_nothing_is_written(old: str, problem: str, tmp_path):
    (tmp_path / "old.toml").write_text(old)

    result = convert(tmp_path / "old.toml", "--output_dir", str(tmp_path / "new"))

    assert result.exit_code == 2
    assert problem in result.stderr
    assert not (tmp_path / "new").exists()


def test_files_that_are_there_are_replaced_only_when_told_to(tmp_path):
    (tmp_path / "old.toml").write_text(LEAST.old)
    there = tmp_path / "kohya_converted" / "dataset.toml"
    there.parent.mkdir()
    there.write_text("mine")

    refused = convert(tmp_path / "old.toml")
    assert refused.exit_code == 2
    assert f"Output file already exists: {there}" in refused.stderr
    assert [path.name for path in there.parent.iterdir()] == ["dataset.toml"]
    assert there.read_text() == "mine"

    assert convert(tmp_path / "old.toml", "--overwrite").exit_code == 0
    assert read(there) == LEAST.dataset


def test_the_file_to_convert_is_never_overwritten(tmp_path):
    source = tmp_path / "train_args.toml"
    source.write_text(LEAST.old)

    result = convert(source, "--output_dir", str(tmp_path), "--overwrite")

    assert result.exit_code == 2
    assert source.read_text() == LEAST.old


def test_a_missing_file_is_named(tmp_path):
    result = convert(tmp_path / "nowhere.toml")

    assert result.exit_code == 2
    assert f"Input config does not exist: {tmp_path / 'nowhere.toml'}" in result.stderr


def test_the_result_trains_from_any_folder_under_any_name(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "old.toml").write_text(
        f"""
[model]
transformer_path = "m.safetensors"
t5_tokenizer_dir = "t5"
[training]
epochs = 1
learning_rate = 1e-4
batch_size = 2
[dataset]
data_dir = {json.dumps(str(tmp_path / "pictures"))}
resolution = 512
min_reso = 256
max_reso = 768
reso_step = 64
[output]
output_dir = "out"
"""
    )
    names = ["--train_args_name", "a.toml", "--dataset_name", "b.toml"]
    result = convert(tmp_path / "old.toml", "--output_dir", str(tmp_path / "new"), *names)
    assert "To be mended" not in result.stdout
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    options = resolve("train", {}, tmp_path / "new" / "a.toml")
    (dataset,) = load_dataset_config(options.value("dataset_config"), options.dataset_fallbacks())

    assert dataset.batch_size == 2
    assert dataset.buckets.max_bucket_reso == 768
    assert dataset.subsets[0].image_dir == tmp_path / "pictures"


def test_the_seeds_tool_runs_from_any_folder(tmp_path):
    (tmp_path / "old.toml").write_text(LEAST.old)
    arguments = [sys.executable, str(TOOL), "--input", "old.toml", "--output_dir", "new"]

    ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[:2] == [
        "Generated: new/train_args.toml",
        "Generated: new/dataset.toml",
    ]
    assert read(tmp_path / "new" / "train_args.toml") == LEAST.train_args


def test_the_published_root_style_file_is_converted_whole(tmp_path):
    config = PUBLISHED["fh-quickstart-single"]
    sections = {**config["train_args"], "dataset": config["dataset"]}
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in sections.items()
    )

    train_args, dataset, printed = convert_text(tmp_path, text)

    assert unmapped(printed) == set()
    assert train_args["optimizer_args"] == ["weight_decay=0.01", "eps=1e-08", "betas=(0.9,0.95)"]
    assert dataset["datasets"][0]["bucket_reso_steps"] == 64


@pytest.fixture
def gui_preset() -> dict[str, object]:
    return dict(PUBLISHED["kohya_ss-gui-anima"]["train_args"])


def convert_gui(folder: Path, preset: dict[str, object]) -> tuple[dict, str]:
    source = folder / "preset.json"
    source.write_text(json.dumps(preset), encoding="utf-8")
    result = convert(source, "--output_dir", str(folder / "new"), "--overwrite")
    assert result.exit_code == 0, result.stderr
    return read(folder / "new" / "train_args.toml"), result.stdout


def test_a_preset_of_the_gui_becomes_kohyas_options(gui_preset, tmp_path):
    train_args, printed = convert_gui(tmp_path, gui_preset)

    expected = {
        "network_module": "networks.lora_anima",
        "network_dim": 8,
        "learning_rate": 0.0005,
        "optimizer_type": "AdamW8bit",
        "resolution": "512,512",
        "qwen3": "models/qwen",
        "vae": "models/vae.safetensors",
        "seed": 1234,
        "max_train_epochs": 1,
        "train_norm": False,
        "xformers": True,
        "noise_offset": 0.05,
        "sample_prompts": "sample_prompts.txt",
    }
    assert {name: train_args.get(name) for name in expected} == expected
    assert (tmp_path / "new" / "sample_prompts.txt").read_text() == "1girl\n"
    assert not (tmp_path / "new" / "dataset.toml").exists()
    # What is switched off, by false, 0 or an empty text, is left out.
    off = {"unet_lr", "text_encoder_lr", "color_aug", "vae_batch_size", "resume"}
    assert off & train_args.keys() == set()
    assert {"clip_skip", "num_processes", "LyCORIS_preset", "sdxl"} <= unmapped(printed)


def test_every_field_of_a_preset_is_kept_or_switched_off_or_listed(gui_preset, tmp_path):
    gui_preset |= {"brand_new": 1, "learning_rte": 2}
    assert {"brand_new", "learning_rte"} <= unmapped(convert_gui(tmp_path, gui_preset)[1])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lr_warmup": 10}, {"lr_warmup_steps": 0.1}),
        ({"epoch": 7}, {"max_train_epochs": 7}),
        ({"max_train_steps": "100"}, {"max_train_steps": 100, "max_train_epochs": None}),
        ({"max_train_epochs": "3", "epoch": 9}, {"max_train_epochs": 3}),
        (
            {"optimizer_args": 'weight_decay=0.1 "betas=(0.9,0.99)"'},
            {"optimizer_args": ["weight_decay=0.1", "betas=(0.9,0.99)"]},
        ),
        ({"noise_offset_type": "Multires"}, {"noise_offset": None}),
        ({"xformers": "none"}, {"xformers": None}),
        (
            {"LoRA_type": "LyCORIS/LoKr", "factor": 8},
            {
                "network_module": "networks.lokr_anima",
                "network_args": ["lokr_factor=8", "lokr_decompose_both=False"],
            },
        ),
        ({"rank_dropout": 0.1}, {"network_args": ["rank_dropout=0.1"]}),
        ({"sample_prompts": "prompts.txt"}, {"sample_prompts": "prompts.txt"}),
        ({"anima_llm_adapter_path": "a"}, {"llm_adapter_path": "a"}),
    ],
)
def test_fields_of_the_guis_own_become_what_it_makes_of_them(
    fields: dict, expected: dict, gui_preset, tmp_path
):
    train_args, _ = convert_gui(tmp_path, gui_preset | fields)

    assert {name: train_args.get(name) for name in expected} == expected


def test_another_kind_of_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"learning_rate": 1}')

    result = convert(tmp_path / "a.json")

    assert result.exit_code == 2
    assert "no preset of kohya_ss GUI" in result.stderr


@pytest.mark.parametrize("words", [["old.toml"], ["--input", "old.toml"]])
def test_the_file_is_given_as_a_path_or_by_name(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.toml").write_text(LEAST.old)
    result = CliRunner().invoke(main, ["convert-config", *words])
    assert result.exit_code == 0, result.stderr
    assert read(Path("kohya_converted/train_args.toml")) == LEAST.train_args


@pytest.mark.parametrize("words", [[], ["old.toml", "--input", "old.toml"]])
def test_there_is_one_file_to_convert(words):
    result = CliRunner().invoke(main, ["convert-config", *words])
    assert result.exit_code == 2
    assert "give one file to convert: anima-pipe convert-config FILE" in result.stderr


def test_what_is_judged_is_what_was_written_and_no_namesake_in_the_current_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("old.toml").write_text(LEAST.old)
    Path("dataset.toml").write_text("[[datasets]]\nresolutoin = 512\n")
    result = CliRunner().invoke(main, ["convert-config", "old.toml"])
    assert result.exit_code == 0
    assert "resolutoin" not in result.output
    assert "resolutoin" not in Path("kohya_converted/train_args.toml").read_text()
    # A run from here would take the namesake.
    assert "dataset.toml of the current folder" in result.stderr
    assert "by --dataset_config" in result.stderr
