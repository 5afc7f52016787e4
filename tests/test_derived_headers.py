"""Headers of files made of others: they describe what is in them and say of what it was made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from adapter_cases import KINDS, pretend_training, small_model
from click.testing import CliRunner, Result
from commands import anima_pipe
from golden_model import golden_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import create_adapter, save_adapter
from anima_pipe.cli.main import main

OF_THE_RUN = {
    "ss_learning_rate": "0.001",
    "ss_steps": "300",
    "ss_sd_model_name": "anima-base-v1.0.safetensors",
    "ss_tag_frequency": '{"fox": {"1girl": 2}}',
    "modelspec.resolution": "1024x1024",
    "modelspec.description": "A fox with a scarf.",
}
OF_THE_AUTHOR = {
    "modelspec.author": "Ann",
    "modelspec.license": "CC0",
    "modelspec.trigger_phrase": "hoshimaru",
}
OF_THE_FILE = {
    "ss_network_module": "networks.lora_anima",
    "ss_network_dim": "4",
    "ss_network_alpha": "3.0",
    "ss_network_args": '{"rank_dropout": 0.1}',
    "ss_network_dropout": "0.1",
    "ss_output_name": "fox",
    "ss_training_comment": "rank 4",
    "modelspec.title": "The Fox of rank 4",
    "modelspec.usage_hint": "Strength 0.8.",
    "lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 3}',
}
FIELDS = {
    **OF_THE_RUN,
    **OF_THE_AUTHOR,
    **OF_THE_FILE,
    "ss_v2": "False",
    "ss_base_model_version": "anima",
    "modelspec.sai_model_spec": "1.0.1",
}


def run(*words: object) -> Result:
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 0, ended.stderr
    return ended


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def adapter_file(path: Path, case: str = "lora", seed: int = 1, **fields: str | None) -> Path:
    """Write an adapter with all fields, but for those that are changed or, by None, left out."""
    kind, arguments = KINDS[case]
    adapter = create_adapter(kind, small_model(), **{"train_norm": False, **arguments})
    stated = {name: text for name, text in {**FIELDS, **fields}.items() if text is not None}
    return save_adapter(pretend_training(adapter, seed=seed), path, metadata=stated)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_describes_its_own_tensors(path: Path, rank: str, kind: str = "lora") -> None:
    header = header_of(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == digest
    assert header["modelspec.hash_sha256"] == f"0x{digest}"
    assert header["adapter_kind"] == kind
    assert header["adapter_rank"] == header["ss_network_dim"] == rank
    assert float(header["adapter_alpha"]) == float(header["ss_network_alpha"]) == int(rank)
    assert header["ss_network_module"] == f"networks.{kind}_anima"
    assert header["ss_output_name"] == header["modelspec.title"] == path.stem
    told = {name for name in OF_THE_FILE if header.get(name) == OF_THE_FILE[name]}
    assert told <= {"ss_network_module", "ss_network_dim"}
    assert json.loads(header["model_depths"]) == {"blocks": 2, "llm_adapter.blocks": 2}


@pytest.mark.parametrize("case", ["lora", "lokr"])
def test_a_resized_file_describes_its_own_tensors_and_the_run_that_they_are_of(tmp_path, case):
    source = adapter_file(tmp_path / "a.safetensors", case)
    small = tmp_path / "small.safetensors"

    run("resize", "--input", source, "--output", small, "--rank", 2)

    assert_describes_its_own_tensors(small, "2")
    assert header_of(small).items() >= {**OF_THE_RUN, **OF_THE_AUTHOR}.items()
    assert json.loads(header_of(small)["made_of"]) == {
        "command": "resize",
        "files": [{"name": "a.safetensors", "sha256": sha256(source)}],
    }


def test_a_resized_peft_folder_names_the_file_in_it(tmp_path):
    own = adapter_file(tmp_path / "a.safetensors")
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {
        key.replace("diffusion_model.", "base_model.model."): tensor
        for key, tensor in load_file(own).items()
        if not key.endswith(".alpha")
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    run("resize", "--input", folder, "--output", tmp_path / "b.safetensors", "--rank", 2)

    header = header_of(tmp_path / "b.safetensors")
    assert json.loads(header["made_of"])["files"][0]["name"] == "adapter_model.safetensors"
    assert header["ss_network_dim"] == "2"


def test_a_merged_file_keeps_what_its_sources_agree_on(tmp_path):
    others = {
        "ss_steps": "500",
        "ss_tag_frequency": '{"owl": {}}',
        "ss_sd_model_name": "anima-preview.safetensors",
        "modelspec.author": "Bob",
        "modelspec.tags": "owl, night",
        "modelspec.title": "Owl",
        "modelspec.description": None,
    }
    first = adapter_file(tmp_path / "a.safetensors", **{"modelspec.tags": "fox, night"})
    second = adapter_file(tmp_path / "b.safetensors", seed=2, **others)
    both = tmp_path / "both.safetensors"

    run("merge", f"{first}:0.5", second, "--output", both)

    header = header_of(both)
    assert_describes_its_own_tensors(both, "8")
    assert {"ss_steps", "ss_tag_frequency", "modelspec.description"} & header.keys() == set()
    assert (
        header.items()
        >= {
            "ss_learning_rate": "0.001",
            "ss_sd_model_name": "anima-base-v1.0.safetensors, anima-preview.safetensors",
            "modelspec.resolution": "1024x1024",
            "modelspec.author": "Ann, Bob",
            "modelspec.license": "CC0",
            "modelspec.tags": "fox, night, owl",
            "modelspec.merged_from": "The Fox of rank 4, Owl",
        }.items()
    )
    assert json.loads(header["made_of"])["files"] == [
        {"name": "a.safetensors", "sha256": sha256(first), "strength": 0.5},
        {"name": "b.safetensors", "sha256": sha256(second)},
    ]


@pytest.mark.parametrize("order", [["deep", "mute"], ["mute", "deep"], ["part", "deep"]])
def test_the_depth_that_any_source_states_is_the_merged_files(tmp_path, order):
    files = {name: adapter_file(tmp_path / f"{name}.safetensors") for name in ("deep", *order)}
    for name, depths in {"mute": None, "part": '{"blocks": 2}'}.items():
        if name in files:
            header = header_of(files[name])
            stated = {"model_depths": depths} if depths else {}
            del header["model_depths"]
            save_file(load_file(files[name]), files[name], {**header, **stated})
    both = tmp_path / "both.safetensors"

    run("merge", *(files[name] for name in order), "--output", both)

    assert header_of(both)["model_depths"] == header_of(files["deep"])["model_depths"]


def test_files_of_two_depths_are_not_merged_whichever_of_them_say_it(tmp_path):
    files = [adapter_file(tmp_path / f"{name}.safetensors") for name in "abc"]
    for path, depths in zip(files, ({}, {"blocks": 2}, {"blocks": 3}), strict=True):
        save_file(load_file(path), path, {"model_depths": json.dumps(depths)})

    ended = CliRunner().invoke(
        main, ["merge", *map(str, files), "--output", str(tmp_path / "d.safetensors")]
    )

    assert ended.exit_code != 0
    assert f"{files[1]} is of a model with 2 blocks, {files[2]} of one with 3" in ended.stderr


@pytest.mark.parametrize("style", ["comfy", "kohya"])
def test_another_style_or_dtype_is_the_same_adapter_to_its_author(tmp_path, style):
    source = adapter_file(tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"

    words = ["--save_format", style, "--save_precision", "bf16"]
    run("convert", "--input", source, "--output", target, *words)

    header = header_of(target)
    assert header.items() >= {**FIELDS, "adapter_style": style}.items() - {
        ("lora_adapter_metadata", FIELDS["lora_adapter_metadata"])
    }
    assert "lora_adapter_metadata" not in header
    assert header["sshs_model_hash"] != header_of(source)["sshs_model_hash"]
    assert json.loads(header["made_of"])["command"] == "convert"


def test_a_file_with_alpha_folded_in_does_not_state_the_old_one(tmp_path):
    source = adapter_file(tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"

    anima_pipe("export-comfy", input=source, output=target, save_format="diffusers").ok()

    assert_describes_its_own_tensors(target, "4")
    assert json.loads(header_of(target)["made_of"])["command"] == "export-comfy"


def test_a_training_save_with_alpha_folded_in_states_that_of_its_tensors(tmp_path):
    adapter = create_adapter("lora", small_model(), 4, 3.0, train_norm=False)

    path = save_adapter(adapter, tmp_path / "a.safetensors", "diffusers", metadata=FIELDS)

    header = header_of(path)
    assert header["ss_network_alpha"] == header["adapter_alpha"] == "4.0"
    assert header["ss_network_args"] == FIELDS["ss_network_args"]


@pytest.mark.parametrize(
    ("kind", "stated", "found"),
    [
        ("lora", "networks.lora_anima", "networks.lora_anima"),
        ("lora", "networks.tlora_anima", "networks.tlora_anima"),
        ("lokr", "lycoris.kohya", "lycoris.kohya"),
        ("lokr", "networks.lokr", "networks.lokr"),
        ("lokr", "networks.lora_anima", "networks.lokr_anima"),
    ],
)
def test_a_run_that_went_on_from_another_rank_and_kind_states_those_of_its_tensors(
    tmp_path, kind, stated, found
):
    adapter = create_adapter(kind, small_model(), 2, 1.0, train_norm=False)

    path = save_adapter(
        adapter, tmp_path / "a.safetensors", metadata={**FIELDS, "ss_network_module": stated}
    )

    header = header_of(path)
    assert header["ss_network_module"] == found
    assert header["ss_network_dim"] == header["adapter_rank"] == "2"
    assert header["ss_network_alpha"] == "1.0"


def test_info_says_what_a_file_was_made_of(tmp_path):
    first = adapter_file(tmp_path / "a.safetensors")
    second = adapter_file(tmp_path / "b.safetensors", seed=2)
    run("merge", f"{first}:0.5", second, "--output", tmp_path / "c.safetensors")

    lines = run("info", tmp_path / "c.safetensors").stdout.splitlines()

    assert "made of     a.safetensors at 0.5, b.safetensors, by merge" in lines


@pytest.mark.parametrize("text", ["by hand", "[1]", '{"files": [3]}', '{"files": [{"name": 1}]}'])
def test_another_programs_made_of_is_shown_as_it_is(tmp_path, text):
    path = adapter_file(tmp_path / "a.safetensors", made_of=text)

    said = run("info", path).stdout

    assert ["made_of", *text.split()] in [line.split() for line in said.splitlines()]
    assert "made of" not in said


def test_ranks_that_differ_are_dynamic_as_kohya_says_it(tmp_path):
    adapter = create_adapter(
        "lora", small_model(), 4, network_reg_dims=".*mlp.*=2", train_norm=False
    )

    path = save_adapter(adapter, tmp_path / "a.safetensors", metadata=FIELDS)

    assert header_of(path)["ss_network_dim"] == "Dynamic"
    assert header_of(path)["adapter_rank"] == "2,4"


def test_what_was_made_of_what_is_told_back_to_the_first(tmp_path):
    first = adapter_file(tmp_path / "a.safetensors")
    run("resize", "--input", first, "--output", tmp_path / "b.safetensors", "--rank", 2)
    run("convert", "--input", tmp_path / "b.safetensors", "--output", tmp_path / "c.safetensors")

    made_of = json.loads(header_of(tmp_path / "c.safetensors")["made_of"])

    assert made_of["files"][0]["made_of"]["files"][0]["name"] == "a.safetensors"
    assert str(tmp_path) not in header_of(tmp_path / "c.safetensors")["made_of"]


def test_an_extracted_file_names_its_base_and_takes_over_who_made_the_other(tmp_path):
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    weights = golden_weights("a")
    save_file(weights, base, {"modelspec.title": "Anima", "modelspec.license": "NC"})
    name = "blocks.0.mlp.layer1.weight"
    spec = {"modelspec.author": "Ann", "modelspec.architecture": "anima", "ss_steps": "9"}
    save_file(weights | {name: weights[name] * 1.1}, tuned, spec)
    target = tmp_path / "c.safetensors"

    run("extract", "--base", base, "--tuned", tuned, "--output", target, "--rank", 2)

    assert_describes_its_own_tensors(target, "2")
    header = header_of(target)
    assert (
        header.items()
        >= {
            "ss_sd_model_name": "base.safetensors",
            "ss_new_sd_model_hash": sha256(base),
            "modelspec.author": "Ann",
            "modelspec.license": "NC",
            "modelspec.architecture": "anima-preview/lora",
        }.items()
    )
    assert "ss_steps" not in header
    assert json.loads(header["made_of"])["command"] == "extract"


def test_a_baked_checkpoint_keeps_the_bases_own_header(tmp_path):
    base, target = tmp_path / "base.safetensors", tmp_path / "baked.safetensors"
    own = {"modelspec.title": "Anima", "somebody's": "field", "format": "pt"}
    save_file(golden_weights("a"), base, {**own, "modelspec.hash_sha256": "0x12"})
    source = adapter_file(tmp_path / "a.safetensors")

    options = {"input": source, "output": target, "merge": base, "merge_strength": 0.5}
    anima_pipe("export-comfy", **options).ok()

    header = header_of(target)
    assert json.loads(header.pop("made_of"))["files"] == [
        {"name": "base.safetensors", "sha256": sha256(base)},
        {"name": "a.safetensors", "sha256": sha256(source), "strength": 0.5},
    ]
    assert header == own
