"""Fetching Anima's released files, with real clients and hubs on loopback."""

from pathlib import Path

import pytest
from fake_hubs import Hubs
from released_files import (
    NAMES,
    PLACES,
    REPO,
    fetch_models,
    leftovers,
    recorded,
    start_apart,
)

from anima_pipe import demo
from anima_pipe.encoders import check_t5_tokenizer
from anima_pipe.hub.kinds import describe_weights
from anima_pipe.hub.models import MODEL_FILES


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


def test_the_users_token_goes_to_the_hub_and_no_further(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    assert fetch_models("--models_dir", tmp_path).exit_code == 0
    assert hubs.hugging_face.tokens == {"Bearer hf_secret"}
    assert hubs.hugging_face.storage_tokens == {"none"}


@pytest.mark.parametrize("name", ["Hugging Face", "ModelScope"])
def test_a_mirror_behind_a_proxy_is_asked_through_it(hubs: Hubs, tmp_path: Path, name: str):
    hub = hubs.hugging_face if name == "Hugging Face" else hubs.modelscope
    link = f"https://modelscope.cn/models/{REPO}"
    which = ["--no-modelscope_fallback"] if hub is hubs.hugging_face else ["--models_repo_id", link]
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy"), hub.url)
    mirror = dict.fromkeys(("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"), "http://mirror.invalid")

    process = start_apart(
        hubs, "--models_dir", tmp_path, *which, **proxy, **mirror, NO_PROXY="", no_proxy=""
    )
    said = process.communicate(timeout=120)[1]

    assert all((tmp_path / place).is_file() for place in PLACES.values()), said
    assert hub.asked_for("http://mirror.invalid/") >= len(PLACES)


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
