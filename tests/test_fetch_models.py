"""Fetching and finding Anima's released files, with real clients and hubs on loopback."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from fake_hubs import Hubs, keep_to_loopback, lead_clients_to, running_hubs
from safetensors.torch import save_file
from tiny_text_encoder import write_t5_folder

from anima_pipe import demo
from anima_pipe.cli.all_stages import with_defaults
from anima_pipe.cli.main import main
from anima_pipe.encoders import check_t5_tokenizer
from anima_pipe.hub.kinds import describe_weights
from anima_pipe.hub.models import MODEL_FILES
from anima_pipe.kohya.resolve import resolve
from anima_pipe.runtime import LOGGER

REPO = "circlestone-labs/Anima"
NAMES = {file.option: Path(file.path).name for file in MODEL_FILES}
PLACES = {file.option: f"{file.folders[0]}/{Path(file.path).name}" for file in MODEL_FILES}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files of the released kinds, by option. Not to be changed."""
    folder = tmp_path_factory.mktemp("release")
    qwen = {
        "model.embed_tokens.weight": torch.zeros(4, 1024, dtype=torch.bfloat16),
        "model.layers.0.self_attn.q_norm.weight": torch.zeros(16, dtype=torch.bfloat16),
        "model.layers.1.mlp.gate_proj.weight": torch.zeros(4, 4, dtype=torch.bfloat16),
    }
    save_file(qwen, folder / "qwen.safetensors")
    return {
        "pretrained_model_name_or_path": demo.DEMO_TRANSFORMER,
        "qwen3": folder / "qwen.safetensors",
        "vae": demo.DEMO_VAE,
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5_folder(tmp_path_factory.mktemp("whole") / "t5", pieces=2000)


@pytest.fixture
def hubs(
    tmp_path: Path, release: dict[str, Path], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hubs]:
    with running_hubs(tmp_path) as hubs:
        for hub in (hubs.hugging_face, hubs.modelscope):
            for file in MODEL_FILES:
                hub.files[f"{REPO}/{file.path}"] = release[file.option].read_bytes()
        hubs.hugging_face.add("google/t5-v1_1-base", "", tokenizer)
        lead_clients_to(hubs, monkeypatch)
        keep_to_loopback(monkeypatch)
        yield hubs


def fetch_models(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["fetch-models", *map(str, arguments)])
    LOGGER.handlers.clear()
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def recorded(hubs: Hubs) -> dict[str, str]:
    return json.loads((Path(hubs.environment["ANIMA_PIPE_HOME"]) / "models.json").read_text())


def leftovers(folder: Path) -> list[str]:
    """Names under a folder that are neither final nor locks."""
    return [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".fetching"))]


def test_all_files_arrive_in_comfyuis_layout_and_are_noted(
    hubs: Hubs, release: dict[str, Path], tmp_path: Path
):
    models = tmp_path / "models"

    ended = fetch_models("--models_dir", models)

    assert ended.exit_code == 0, ended.stderr
    for option, place in PLACES.items():
        assert (models / place).read_bytes() == release[option].read_bytes()
        assert recorded(hubs)[option] == str(models / place)
        assert f'{option} = "{models / place}"' in ended.stdout
    check_t5_tokenizer(models / "t5_tokenizer")
    assert set(recorded(hubs)) == {*NAMES, "t5_tokenizer_dir"}
    assert leftovers(models) == []


def test_sizes_and_the_licence_are_said_once_before_anything_is_fetched(hubs: Hubs):
    said = fetch_models().stderr

    assert said.count("CircleStone Labs Non-Commercial License") == 1
    assert "altogether" in said
    assert said.index("License") < said.index("altogether") < said.index("fetched, its checksum")


def test_without_a_folder_they_go_to_the_users_cache(hubs: Hubs):
    fetch_models()

    home = Path(hubs.environment["ANIMA_PIPE_HOME"])
    assert all((home / "models" / place).is_file() for place in PLACES.values())


def test_what_is_there_is_not_fetched_again(hubs: Hubs):
    fetch_models()
    hubs.hugging_face.requests.clear()

    ended = fetch_models()

    assert ended.exit_code == 0
    assert hubs.hugging_face.requests == []
    assert "License" not in ended.stderr


def test_force_replaces_a_file_that_is_there(hubs: Hubs, tmp_path: Path, release: dict[str, Path]):
    models = tmp_path / "models"
    fetch_models("--models_dir", models)
    (models / PLACES["vae"]).write_bytes(b"damaged")

    fetch_models("--models_dir", models)
    assert (models / PLACES["vae"]).read_bytes() == b"damaged"
    fetch_models("--models_dir", models, "--force")
    assert (models / PLACES["vae"]).read_bytes() == release["vae"].read_bytes()


def test_another_repository_revision_and_file_can_be_named(hubs: Hubs, tmp_path: Path):
    hubs.hugging_face.files["me/mine/my.safetensors"] = demo.DEMO_TRANSFORMER.read_bytes()
    for file in MODEL_FILES[1:]:
        hubs.hugging_face.files[f"me/mine/{file.path}"] = demo.DEMO_VAE.read_bytes()

    ended = fetch_models(
        "--models_dir", tmp_path, "--models_repo_id", "https://huggingface.co/me/mine/tree/main",
        "--transformer_file", "my.safetensors",
    )  # fmt: skip

    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / "diffusion_models" / "my.safetensors").is_file()


@pytest.mark.parametrize("kind", ["corrupt", "short", "status"])
def test_modelscope_gives_what_hugging_face_does_not(hubs: Hubs, tmp_path: Path, kind: str):
    hubs.hugging_face.fails(kind, 500, method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path)

    assert all((tmp_path / place).is_file() for place in PLACES.values()), ended.stderr
    assert f"warning: Hugging Face {REPO}@main" in ended.stderr


def test_where_both_fail_the_error_says_what_to_put_where(hubs: Hubs, tmp_path: Path):
    hubs.hugging_face.fails("status", 403, code="GatedRepo", where=REPO)
    hubs.modelscope.fails("status", 404, where=REPO)

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 2
    assert f"Hugging Face {REPO}@main: access to {REPO} is refused or gated" in ended.stderr
    assert f"ModelScope {REPO}@master:" in ended.stderr
    assert f"put {MODEL_FILES[0].path} from https://huggingface.co/{REPO}" in ended.stderr
    assert f"to {tmp_path / PLACES['pretrained_model_name_or_path']} by hand" in ended.stderr


def test_a_damaged_file_gets_no_final_name(hubs: Hubs, tmp_path: Path):
    hubs.hugging_face.fails("corrupt", method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path, "--no-modelscope_fallback")

    assert ended.exit_code == 2
    assert "wrong checksum" in ended.stderr
    assert not any((tmp_path / place).exists() for place in PLACES.values())


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 2
    assert "has room for" in ended.stderr
    assert hubs.hugging_face.asked_for("storage") == 0


def test_a_broken_transfer_goes_on_where_it_broke(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    hubs.hugging_face.fails("broken", times=2, method="GET", where="/storage/")

    ended = fetch_models("--models_dir", tmp_path)

    assert ended.exit_code == 0, ended.stderr
    assert any("bytes=" in line for line in hubs.hugging_face.requests)


def test_a_killed_fetch_is_taken_up_by_the_next_one(hubs: Hubs, tmp_path: Path):
    models = tmp_path / "models"
    hubs.hugging_face.fails("stall", times=1, method="GET", where="qwen_image_vae")
    process = subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", "fetch-models", "--models_dir", str(models)],
        env={**os.environ, **hubs.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not hubs.hugging_face.asked_for("qwen_image_vae.safetensors", "GET /storage"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (models / PLACES["vae"]).exists()

    ended = fetch_models("--models_dir", models)

    assert ended.exit_code == 0, ended.stderr
    assert "there already" in ended.stderr
    assert (models / PLACES["vae"]).is_file()
    assert leftovers(models) == []


@pytest.fixture
def comfyui(tmp_path: Path, release: dict[str, Path]) -> Path:
    """A ComfyUI that has the files under names of the user's own, among others."""
    models = tmp_path / "ComfyUI" / "models"
    for option, place in PLACES.items():
        path = models / place
        (path.parent / "of_mine").mkdir(parents=True)
        shutil.copy(release[option], path.parent / "of_mine" / f"my_{option}.safetensors")
        (path.parent / "broken.safetensors").write_bytes(b"<html>")
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path.parent / "other.safetensors")
    return models.parent


def test_files_in_comfyui_are_found_by_content_and_only_noted(hubs: Hubs, comfyui: Path):
    before = sorted(comfyui.rglob("*"))

    ended = fetch_models("--comfyui", comfyui)

    assert ended.exit_code == 0, ended.stderr
    for option, place in PLACES.items():
        found = comfyui / "models" / Path(place).parent / "of_mine" / f"my_{option}.safetensors"
        assert recorded(hubs)[option] == str(found)
    assert sorted(comfyui.rglob("*")) == before
    assert hubs.hugging_face.asked_for("storage", method="HEAD") == 0


def test_of_several_in_comfyui_the_released_name_is_taken(
    hubs: Hubs, comfyui: Path, release: dict[str, Path]
):
    place = comfyui / "models" / PLACES["vae"]
    shutil.copy(release["vae"], place)

    fetch_models("--comfyui", comfyui)

    assert recorded(hubs)["vae"] == str(place)


def test_of_several_in_comfyui_none_is_guessed_and_one_can_be_named(
    hubs: Hubs, comfyui: Path, release: dict[str, Path]
):
    second = comfyui / "models" / "vae" / "second.safetensors"
    shutil.copy(release["vae"], second)

    guessed = fetch_models("--comfyui", comfyui)
    named = fetch_models("--comfyui", comfyui, "--vae_file", "second.safetensors")

    assert guessed.exit_code == 2
    assert "vae/second.safetensors" in guessed.stderr
    assert "--vae_file" in guessed.stderr
    assert named.exit_code == 0, named.stderr
    assert recorded(hubs)["vae"] == str(second)


def test_what_comfyui_lacks_is_named(hubs: Hubs, comfyui: Path):
    shutil.rmtree(comfyui / "models" / "vae")

    assert "there is no file of the VAE" in fetch_models("--comfyui", comfyui).stderr


def test_another_folder_is_no_comfyui(hubs: Hubs, tmp_path: Path):
    assert "is no installation of ComfyUI" in fetch_models("--comfyui", tmp_path / "x").stderr


def test_a_record_that_is_damaged_says_so(hubs: Hubs):
    home = Path(hubs.environment["ANIMA_PIPE_HOME"])
    home.mkdir()
    (home / "models.json").write_text("{")

    assert "models.json cannot be read" in fetch_models().stderr


@pytest.mark.parametrize(
    ("path", "kind", "dtype", "blocks"),
    [
        (demo.DEMO_TRANSFORMER, "Anima transformer", "BF16", 3),
        (demo.DEMO_VAE, "Wan 2.1 / Qwen-Image VAE", "BF16", 0),
        (demo.DEMO_QWEN / "model.safetensors", "a Qwen3 of width 64", "BF16", 2),
    ],
)
def test_a_file_is_told_by_its_content(path: Path, kind: str, dtype: str, blocks: int):
    told = describe_weights(path)

    assert (told.kind, told.dtype, told.blocks) == (kind, dtype, blocks)
    assert told.size == path.stat().st_size


def test_all_takes_what_was_noted_where_the_configuration_names_no_files(
    hubs: Hubs, comfyui: Path, tmp_path: Path
):
    fetch_models("--comfyui", comfyui)
    config = tmp_path / "train_args.toml"
    config.write_text('vae = "my/own.safetensors"\n')
    given = {"dataset_config": str(tmp_path), "output_dir": "out", "config_file": str(config)}

    taken = with_defaults(resolve("all", given, config))

    noted = recorded(hubs)
    assert "vae" not in taken
    for option in ("pretrained_model_name_or_path", "qwen3", "t5_tokenizer_dir"):
        assert str(taken[option]) == noted[option]
