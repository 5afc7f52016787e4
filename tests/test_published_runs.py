"""Published configurations really train: two steps on the demo's model, but for paths unchanged."""

import json
import shutil
from pathlib import Path

import pytest
from commands import MODEL, TRAINING, anima_pipe, demo_pictures

from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.toml_text import toml_lines

PUBLISHED = {
    config["id"]: config
    for config in json.loads(
        (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
    )
}
OURS = {*MODEL, "dataset_config", "output_dir", "cache_dir", "max_train_steps", "max_train_epochs"}
"""Options that the test gives itself: paths, and the two steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures where the configurations look for theirs, and a place for caches."""
    folder = tmp_path_factory.mktemp("published")
    subject = demo_pictures(folder / "data" / "images" / "10_fox", every=18)
    for path in subject.iterdir():
        shutil.copy(path, subject.parent)
    return folder


def is_ours(key: str) -> bool:
    option = find_option(key)
    return option is not None and option.name in OURS


def dataset_of(config: dict, folder: Path) -> Path:
    """The dataset that was published with a configuration, else the folder of pictures itself."""
    if not config["dataset"]:
        return Path("data", "images")
    file = folder / "dataset.json"
    file.write_text(json.dumps(config["dataset"]), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fh-smoke-10steps",
        "fh-quickstart-train-args",
        "fh-newzx-single",
        "fh-docs-cli-lora",
        "fh-docs-cli-lokr",
        "kohya-docs-anima",
        "duongve-hf35",
        "style-8gb-py",
        "yaju-anima-resp-24gb",
        "flask-gui-bat",
    ],
)
def test_a_published_configuration_trains(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = PUBLISHED[name]
    if "8bit" in str(config["train_args"].get("optimizer_type")):
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(folder)
    theirs = {key: value for key, value in config["train_args"].items() if not is_ours(key)}
    given: dict[str, object] = dict.fromkeys(TRAINING)
    if config["form"] == "cli":
        given |= theirs
    else:
        given["config_file"] = tmp_path / "train_args.toml"
        given["config_file"].write_text("\n".join(toml_lines(theirs)), encoding="utf-8")
    if "train_data_dir" not in theirs:
        given["dataset_config"] = dataset_of(config, tmp_path)
    given |= {"output_dir": tmp_path / "out", "cache_dir": folder / "cache", "log_with": "none"}

    ended = anima_pipe("train", tmp_path / "summary.json", **{**given, "max_train_steps": 2}).ok()

    assert ended.summary is not None
    assert ended.summary["steps"] == 2
    assert Path(ended.summary["output"]).is_file()
