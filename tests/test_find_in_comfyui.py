"""Finding Anima's files in an installation of ComfyUI: by content, by name, in any folder of it."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from fake_hubs import Hubs
from released_files import PLACES, fetch_models, recorded
from safetensors.torch import save_file

from anima_pipe.cli.all_stages import with_defaults
from anima_pipe.hub.home import MODEL_OPTIONS
from anima_pipe.kohya.model_files import with_recorded_models
from anima_pipe.kohya.resolve import resolve

TRANSFORMER = "pretrained_model_name_or_path"


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


@pytest.mark.parametrize(
    "names",
    [
        ["mine.safetensors", "anima-preview.safetensors"],
        ["anima-preview.safetensors", "anima-preview3-base.safetensors"],
        ["anima-preview3-base.safetensors", "anima-base-v1.0.safetensors"],
    ],
)
def test_of_several_releases_the_newest_is_taken(
    hubs: Hubs, comfyui: Path, release: dict[str, Path], names: list[str]
):
    for name in names:
        shutil.copy(release[TRANSFORMER], comfyui / "models" / "diffusion_models" / name)

    assert fetch_models("--comfyui", comfyui).exit_code == 0
    assert Path(recorded(hubs)[TRANSFORMER]).name == names[-1]


@pytest.fixture
def elsewhere(tmp_path: Path, comfyui: Path) -> Path:
    """The folders of that ComfyUI, moved to another place."""
    shutil.move(comfyui / "models", tmp_path / "disk" / "weights")
    return tmp_path / "disk" / "weights"


@pytest.mark.parametrize(
    "text",
    [
        # As ComfyUI's own example has it, old names of folders and several lines included.
        """\
        mine:
            base_path: {parent}
            is_default: true
            checkpoints: weights/checkpoints/
            vae: weights/vae/
            clip: |
                weights/clip
                weights/text_encoders/
            unet: weights/diffusion_models
        """,
        """\
        of_nothing:
        first:
            diffusion_models: {parent}/weights/diffusion_models
            text_encoders: ../disk/weights/text_encoders
        second:
            base_path: ../disk
            vae: weights/vae
        """,
        """\
        mine:
            base_path: $DISK/weights
            diffusion_models: diffusion_models
            text_encoders: text_encoders
            vae: vae
        """,
    ],
)
def test_folders_that_comfyui_has_elsewhere_are_searched_too(
    hubs: Hubs, comfyui: Path, elsewhere: Path, text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DISK", str(elsewhere.parent))
    settings = textwrap.dedent(text).format(parent=elsewhere.parent)
    (comfyui / "extra_model_paths.yaml").write_text(settings)

    ended = fetch_models("--comfyui", comfyui)

    assert ended.exit_code == 0, ended.stderr
    for option, place in PLACES.items():
        found = elsewhere / Path(place).parent / "of_mine" / f"my_{option}.safetensors"
        assert recorded(hubs)[option] == str(found)


@pytest.mark.parametrize("is_default", [True, False])
def test_of_two_of_a_name_the_one_that_comfyui_takes_is_taken(
    hubs: Hubs, comfyui: Path, tmp_path: Path, release: dict[str, Path], is_default: bool
):
    here = comfyui / "models" / PLACES["vae"]
    there = tmp_path / "disk" / here.name
    there.parent.mkdir()
    for place in (here, there):
        shutil.copy(release["vae"], place)
    section = {"base_path": str(tmp_path), "vae": "disk", "is_default": is_default}
    # JSON is YAML.
    (comfyui / "extra_model_paths.yaml").write_text(json.dumps({"mine": section}))

    assert fetch_models("--comfyui", comfyui / "models").exit_code == 0
    assert recorded(hubs)["vae"] == str(there if is_default else here)


def test_a_file_of_folders_that_cannot_be_read_is_named(hubs: Hubs, comfyui: Path):
    (comfyui / "extra_model_paths.yaml").write_text("mine: [")

    ended = fetch_models("--comfyui", comfyui)

    assert ended.exit_code == 2
    assert "extra_model_paths.yaml cannot be read" in ended.stderr


def test_files_behind_a_link_to_a_folder_are_found(hubs: Hubs, comfyui: Path, tmp_path: Path):
    vae = comfyui / "models" / "vae"
    shutil.move(vae / "of_mine", tmp_path / "disk")
    (vae / "linked").symlink_to(tmp_path / "disk")

    assert fetch_models("--comfyui", comfyui).exit_code == 0
    assert recorded(hubs)["vae"] == str(tmp_path / "disk" / "my_vae.safetensors")


def test_links_that_lead_back_are_followed_once(hubs: Hubs, comfyui: Path):
    vae = comfyui / "models" / "vae"
    for name in ("a", "b", "c"):
        (vae / name).symlink_to(vae)
    (vae / "itself").symlink_to("itself")

    assert fetch_models("--comfyui", comfyui).exit_code == 0
    assert recorded(hubs)["vae"] == str(vae / "of_mine" / "my_vae.safetensors")


def test_a_bomb_in_comfyuis_file_of_folders_names_no_folder(hubs: Hubs, comfyui: Path):
    layers = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    bomb = "\n  ".join(["mine:", "l0: &l0 [x]", *layers, "base_path: *l11", "vae: *l11"])
    (comfyui / "extra_model_paths.yaml").write_text(bomb)

    assert fetch_models("--comfyui", comfyui).exit_code == 0


def test_what_comfyui_lacks_is_named(hubs: Hubs, comfyui: Path):
    shutil.rmtree(comfyui / "models" / "vae")

    assert "there is no file of the VAE" in fetch_models("--comfyui", comfyui).stderr


def test_another_folder_is_no_comfyui(hubs: Hubs, tmp_path: Path):
    assert "is no installation of ComfyUI" in fetch_models("--comfyui", tmp_path / "x").stderr


def test_all_takes_what_was_noted_where_the_configuration_names_no_files(
    hubs: Hubs, comfyui: Path, tmp_path: Path
):
    fetch_models("--comfyui", comfyui)
    config = tmp_path / "train_args.toml"
    config.write_text('vae = "my/own.safetensors"\n')
    given = {"dataset_config": str(tmp_path), "output_dir": "out", "config_file": str(config)}

    options = resolve("all", given, config)
    taken = with_defaults(with_recorded_models(options, *MODEL_OPTIONS))

    noted = recorded(hubs)
    assert "vae" not in taken
    for option in ("pretrained_model_name_or_path", "qwen3", "t5_tokenizer_dir"):
        assert str(taken[option]) == noted[option]
