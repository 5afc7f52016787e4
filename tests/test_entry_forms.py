"""Every way to call the stages, each in a process of its own, as the README writes them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import MODEL, ROOT, SCRIPTS, TAKES, TRAINING, Ended, files_in, options, run_apart

from anima_pipe import demo

pytestmark = pytest.mark.slow

MODULES = {
    "fetch-tokenizer": "stages.fetch_tokenizer",
    "cache-latents": "stages.bucket_and_cache_latents",
    "encode-text": "stages.encode_text_qwen_t5",
    "train": "stages.train",
    "export-comfy": "stages.export_comfy",
}

Form = Callable[[str, list[str]], Ended]
"""Runs a stage with the options typed."""


def console_script(stage: str, typed: list[str]) -> Ended:
    return run_apart(SCRIPTS / "anima-pipe", stage, *typed)


def module(stage: str, typed: list[str]) -> Ended:
    return run_apart(sys.executable, "-m", MODULES[stage], *typed)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Runs make with this environment in place of the one that it would install."""
    environment = tmp_path_factory.mktemp("environment")
    (environment / "bin").mkdir()
    for name in ("anima-pipe", "python"):
        (environment / "bin" / name).symlink_to(SCRIPTS / name)
    for stamp in ("bin/pip", ".installed"):
        (environment / stamp).touch()
    # `make test` hands its own flags and values down to every make below it.
    clean = dict.fromkeys(("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS"), "")

    def run(*words: str) -> Ended:
        return run_apart("make", "--no-print-directory", f"VENV={environment}", *words, **clean)

    return run


@pytest.mark.parametrize("form", ["anima-pipe <stage>", "python -m stages.<stage>", "make <stage>"])
def test_all_five_stages_run(
    form: str, make: Callable[..., Ended], cached: dict[str, object], tmp_path: Path
):
    trained = tmp_path / "out" / "fox.safetensors"

    def by_make(stage: str, typed: list[str]) -> Ended:
        values = []
        if stage == "export-comfy":
            stage, values, typed = "export", [f"INPUT={trained}", f"OUTPUT={exported}"], []
        return make(stage, f"CONFIG={config}", *values, f"ARGS={shlex.join(typed)}")

    exported = tmp_path / "comfyui" / "fox.safetensors"
    config = tmp_path / "train_args.toml"
    config.write_text("network_dim = 2\n")
    run = {"a": console_script, "p": module, "m": by_make}[form[0]]

    data = {**cached, "device": "cpu"}
    given: dict[str, dict[str, object]] = {
        "fetch-tokenizer": {},
        "cache-latents": data,
        "encode-text": data,
        "train": {**data, **TRAINING, "config_file": config, "output_dir": tmp_path / "out"},
        "export-comfy": {"input": trained, "output": exported},
    }
    for stage, values in given.items():
        model = {name: MODEL[name] for name in TAKES[stage]}
        ended = run(stage, options(**model, **values)).ok()
        assert "Traceback" not in ended.said

    assert files_in(tmp_path) == {
        "train_args.toml",
        "out/fox.safetensors",
        "comfyui/fox.safetensors",
    }


def test_the_smoke_configuration_trains_ten_steps_under_accelerate(tmp_path: Path):
    summary = tmp_path / "summary.json"

    ended = run_apart(
        *(SCRIPTS / "accelerate", "launch", "anima_train_network.py"),
        *("--config_file", "configs/smoke/anima_10steps_train_args.toml"),
        *("--dataset_config", "configs/smoke/anima_dataset.toml"),
        *options(
            cache_dir=tmp_path / "cache",
            output_dir=tmp_path / "out",
            logging_dir=tmp_path / "logs",
            summary_json=summary,
        ),
        summary=summary,
    ).ok()

    assert ended.summary is not None
    assert ended.summary["steps"] == 10
    assert ended.summary["output"] == str(tmp_path / "out" / "smoke.safetensors")
    assert (tmp_path / "out" / "smoke.safetensors").exists()


@pytest.mark.parametrize("script", ["anima_train_network.py", "stages/train.py"])
def test_training_takes_all_its_options_on_the_command_line(
    script: str, cached: dict[str, object], tmp_path: Path
):
    ended = run_apart(
        *(SCRIPTS / "accelerate", "launch", script),
        # The seed's names of the model's files, and Kohya's lists after one flag.
        *("--anima_transformer", demo.DEMO_TRANSFORMER, "--vae_path", demo.DEMO_VAE),
        *("--qwen", demo.DEMO_QWEN, "--t5_tokenizer_path", demo.DEMO_T5_TOKENIZER),
        *options(**cached, **TRAINING, output_dir=tmp_path, device="cpu", network_dim=2),
        *("--optimizer_type", "AdamW", "--optimizer_args", "weight_decay=0.01", "eps=1e-7"),
        *(
            "--network_args",
            "train_norm=False",
            "--gradient_checkpointing",
            "--anima_flow_shift",
            "3",
        ),
    ).ok()

    assert files_in(tmp_path) == {"fox.safetensors"}
    assert "(100%)" in ended.said


def test_make_all_takes_a_folder_of_pictures_the_whole_way(
    make: Callable[..., Ended], pictures: Path, tmp_path: Path
):
    mine = tmp_path / "my own pictures, it's v1.5"
    shutil.copytree(pictures, mine)
    for path in mine.glob("*.txt"):
        path.write_text(f"{path.read_text().strip()}, fox (animal)")
    out = tmp_path / "out"

    ended = make(
        *("all", f"DATASET={mine}", f"OUT={out}"),
        "ARGS=--max_train_steps 2 --device cpu --resolution 128 --min_bucket_reso 64",
    ).ok()

    adapter = out / "first_look" / f"{mine.name}-for-embedded-model.safetensors"
    sheet = out / "sample" / f"{mine.name}.png"
    megabytes = adapter.stat().st_size / 1e6
    end = ended.said.splitlines()[-6:]
    assert end[0] == f"adapter        {adapter} ({megabytes:.2f} MB)"
    assert end[1].startswith("loss           ")
    assert end[2] == f"contact sheet  {sheet}"
    # Nobody takes it for a file for ComfyUI, and the way to one is told.
    assert not (out / "comfyui").exists()
    assert "embedded tiny model alone" in end[3]
    assert "fetch-models" in end[4]
    preset = "configs/presets/12gb/train_args.toml"
    assert f"all --config_file {preset} --dataset_config {shlex.quote(str(mine))}" in end[5]
    assert (ROOT / preset).exists()
    assert sheet.exists()
    assert {path.stem for path in (out / "summaries").iterdir()} == set(MODULES)
    # Previews are of the folder's own captions.
    prompts = [prompt["prompt"] for prompt in json.loads((out / "prompts.json").read_text())]
    captions = [path.read_text().strip() for path in sorted(mine.glob("*.txt"))]
    captions = [caption.replace("(", r"\(").replace(")", r"\)") for caption in captions]
    assert 1 <= len(prompts) <= 4
    assert set(prompts) <= set(captions)
    assert len(list((out / "sample").glob("*_000002_*.png"))) == len(prompts)
