"""The promises of the repository itself: its commands, documents, configurations and lock."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anima_pipe.cli.main import COMMANDS
from anima_pipe.demo import DEMO_PICTURES
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.source.prompts import unescaped

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
HEAVY = ("torch", "transformers", "accelerate", "PIL", "webdataset", "numpy")
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[!_]*.py"))
CONFIG_FILES = sorted([*ROOT.glob("configs/**/*.toml"), *ROOT.glob("anima_pipe/demo/*.toml")])
DATASET_FILES = [path for path in CONFIG_FILES if path.stem.endswith("dataset")]
TRAIN_ARGS_FILES = [path for path in CONFIG_FILES if path not in DATASET_FILES]

SAYS_WHAT_IT_IMPORTED = f"""
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert ended.code in (0, None), ended.code
print("HEAVY", [name for name in {HEAVY} if name in sys.modules])
"""


MAKE_VALUES = {"DATASET", "CONFIG", "OUT", "INPUT", "OUTPUT", "ARGS", "PYTHON", "VENV"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    # `make test` hands its own flags and values down to every make below it.
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in MAKE_VALUES and not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)


def blocks_of(document: str, language: str) -> list[str]:
    """The code blocks of a document that are marked as being in a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def code_of(document: str) -> str:
    """Everything in a document that is set as code."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = blocks_of(document, r"\w*")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose)])


@pytest.fixture(scope="module")
def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "entry",
    [
        ["anima_pipe.cli"],
        *(["anima_pipe.cli", command] for command in COMMANDS),
        *([f"stages.{stage}"] for stage in STAGES),
        ["anima_train_network.py"],
    ],
    ids=" ".join,
)
def test_help_answers_without_importing_anything_heavy(entry: list[str]):
    ended = run(sys.executable, "-c", SAYS_WHAT_IT_IMPORTED, json.dumps([*entry, "--help"]))

    assert ended.returncode == 0, ended.stderr
    assert "Usage:" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_the_overview_names_every_stage():
    overview = run(sys.executable, "-m", "anima_pipe.cli", "--help").stdout

    assert [name for name in COMMANDS if name not in overview] == []
    assert {entry.place.split(":")[0] for entry in COMMANDS.values()} >= {
        f"stages.{stage}" for stage in STAGES
    }


def test_the_layers_of_the_library_hold():
    ended = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")

    assert ended.returncode == 0, ended.stdout
    assert " 0 broken" in ended.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documents_make_commands_exist(document: str, make_targets: set[str]):
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code_of(document)))

    assert named, "the document names no make command at all"
    assert named <= make_targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documents_anima_pipe_commands_exist(document: str):
    named = set(re.findall(r"\banima-pipe ([a-z][a-z-]*)", code_of(document)))

    assert named <= set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documents_links_lead_to_files(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)

    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_make_help_lists_every_target(make_targets: set[str]):
    ended = run("make", "--no-print-directory", "help")

    listed = set(re.findall(r"^  make ([a-z-]+)", ended.stdout, flags=re.MULTILINE))
    assert listed == make_targets


SMOKE_CONFIG = "--config_file configs/smoke/anima_10steps_train_args.toml"
SMOKE = "output/smoke/smoke"
SMOKE_FILES = f"--input {SMOKE}.safetensors --output {SMOKE}_comfyui.safetensors"
SMOKE_DATASET = "--dataset_config configs/smoke/anima_dataset.toml"


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ("all", "all"),
        ('all DATASET="it\'s my folder"', 'all --dataset_config "it\'s my folder"'),
        (
            "all DATASET=d.toml CONFIG=c.toml OUT=out ARGS='--seed 1'",
            "all --config_file c.toml --dataset_config d.toml --output_dir out --seed 1",
        ),
        ("fetch-tokenizer", f"fetch-tokenizer {SMOKE_CONFIG}"),
        ("cache-latents", f"cache-latents {SMOKE_CONFIG} {SMOKE_DATASET}"),
        ("encode-text DATASET=folder", f"encode-text {SMOKE_CONFIG} --dataset_config folder"),
        ("train CONFIG=c.toml", "train --config_file c.toml"),
        (
            "export",
            f"export-comfy {SMOKE_CONFIG} {SMOKE_FILES}",
        ),
        (
            "export CONFIG=c.toml INPUT='my fox.safetensors' OUTPUT=o.safetensors",
            "export-comfy --config_file c.toml --input 'my fox.safetensors' --output o.safetensors",
        ),
    ],
)
def test_make_hands_its_values_to_the_command(words: str, typed: str, tmp_path: Path):
    prints_its_arguments = tmp_path / "bin" / "anima-pipe"
    prints_its_arguments.parent.mkdir()
    prints_its_arguments.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    prints_its_arguments.chmod(0o755)
    for stamp in ("bin/pip", ".installed"):
        (tmp_path / stamp).touch()

    ended = run("make", "--no-print-directory", f"VENV={tmp_path}", *shlex.split(words))

    assert ended.stdout.splitlines() == shlex.split(typed)


def test_make_says_which_python_it_lacks(tmp_path: Path):
    ended = run("make", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python", "all")

    assert ended.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13 with venv among: no-such-python" in ended.stderr


@pytest.mark.parametrize("path", TRAIN_ARGS_FILES, ids=lambda path: path.name)
def test_a_shipped_configuration_is_understood(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)

    resolved = resolve("train", {}, config_file=path)

    assert resolved.warnings == ()
    for option in ("pretrained_model_name_or_path", "vae", "qwen3", "t5_tokenizer_dir"):
        assert resolved.value(option) is None or resolved.value(option).exists()


@pytest.mark.parametrize(
    # Presets are for the user's own pictures: test_presets.py.
    "path",
    [path for path in DATASET_FILES if "presets" not in path.parts],
    ids=lambda path: path.name,
)
def test_a_shipped_dataset_is_understood(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    train_args = next(path.parent.glob("*train_args.toml"))
    fallbacks = resolve("train", {}, config_file=train_args).dataset_fallbacks()

    datasets = load_dataset_config(path, fallbacks)

    assert all(subset.image_dir.is_dir() for dataset in datasets for subset in dataset.subsets)


def requirements(*, leaving_out: Collection[str] = ()) -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, listed in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        if extra not in leaving_out:
            yield from map(Requirement, listed)


def test_everything_required_is_locked_at_a_version_that_fits():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))

    wrong = [
        str(required)
        for required in requirements()
        if required.name != "anima-pipe"
        and not required.specifier.contains(locked.get(canonicalize_name(required.name), "0"))
    ]
    assert wrong == []


def imported_packages() -> set[str]:
    sources = [*ROOT.glob("anima_pipe/**/*.py"), *ROOT.glob("stages/*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_bytes()))]
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    modules += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    tops = {module.partition(".")[0] for module in modules}
    # _typeshed exists for type checkers alone.
    return tops - sys.stdlib_module_names - {"anima_pipe", "stages", "_typeshed"}


def test_everything_that_the_library_imports_is_required_by_name():
    needed = requirements(leaving_out=("test", "dev"))
    dependencies = {canonicalize_name(required.name) for required in needed}
    distributions = packages_distributions()

    assert {
        package
        for package in imported_packages()
        if dependencies.isdisjoint(map(canonicalize_name, distributions[package]))
    } == set()


def test_every_file_of_the_library_is_installed_with_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    library = ROOT / "anima_pipe"
    shipped = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["anima_pipe"]
        for path in library.glob(pattern)
    }

    files = {path for path in library.rglob("*") if path.is_file()}
    assert {path for path in files - shipped if path.suffix not in (".py", ".pyc")} == set()


def test_the_readmes_configurations_are_understood(tmp_path: Path):
    train_args, dataset = tmp_path / "train_args.toml", tmp_path / "dataset.toml"
    (tmp_path / "pictures").mkdir()
    for path, block in zip((train_args, dataset), blocks_of("README.md", "toml"), strict=True):
        path.write_text(block, encoding="utf-8")

    assert resolve("train", {}, config_file=train_args).warnings == ()
    assert load_dataset_config(dataset, {})[0].subsets[0].captions.keep_tokens == 1


def test_the_readmes_library_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)

    namespace: dict[str, object] = {}
    for example in blocks_of("README.md", "python"):
        exec(compile(example, "README.md", "exec"), namespace)

    assert len(list(tmp_path.glob("cache/*/*.tar"))) == 2
    assert (tmp_path / "fox.safetensors").is_file()
    assert (tmp_path / "fox_fp16.safetensors").is_file()
    printed = capsys.readouterr().out
    for caption in DEMO_PICTURES.glob("*.txt"):
        assert unescaped(caption.read_text(encoding="utf-8").strip()) in printed
        assert printed.count(caption.stem) == 3, "once plainly, and once in each epoch"
