"""The last stage as a call of the library, and what the package of runs offers."""

from __future__ import annotations

import ast
import json
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import pytest
import torch
from commands import run_apart
from safetensors import safe_open

from anima_pipe import runs
from anima_pipe.adapters import create_adapter, save_adapter
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.errors import CheckpointError, ConfigError, PipeError
from anima_pipe.kohya.exporting import export_settings
from anima_pipe.kohya.resolve import resolve
from anima_pipe.model import load_transformer
from anima_pipe.runs import BakeSettings, ExportSettings, export_adapter

EXPORTS = """
import json, sys
from dataclasses import asdict
from pathlib import Path

from anima_pipe.runs import BakeSettings, ExportSettings, export_adapter

adapter, checkpoint, folder = map(Path, sys.argv[1:])
written = export_adapter(ExportSettings(adapter=adapter, output=folder / "comfy.safetensors"))
baked = BakeSettings(adapter=adapter, checkpoint=checkpoint, output=folder / "baked.safetensors")
summaries = [asdict(written), asdict(export_adapter(baked))]
print(json.dumps({"summaries": summaries, "modules": sorted(sys.modules)}))
"""
COMMAND_LINE = ("click", "stages", "anima_pipe.cli", "anima_pipe.kohya")
TINY = "import json, sys, anima_pipe.runs, anima_pipe.runs.settings.caching\n"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an adapter of the demo's model. Not to be changed."""
    path = tmp_path_factory.mktemp("adapter") / "fox.safetensors"
    model = load_transformer(DEMO_TRANSFORMER)
    save_adapter(create_adapter("lora", model, network_dim=4, network_alpha=4), path)
    return path


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_an_adapter_is_exported_and_baked_by_calls_that_know_no_command_line(
    adapter: Path, tmp_path: Path
) -> None:
    ended = run_apart(sys.executable, "-c", EXPORTS, adapter, DEMO_TRANSFORMER, tmp_path).ok()
    told = json.loads(ended.printed)

    known = {name.split(".")[0] for name in told["modules"]} | set(told["modules"])
    assert known.intersection(COMMAND_LINE) == set()
    for summary, name in zip(told["summaries"], ("comfy", "baked"), strict=True):
        output = tmp_path / f"{name}.safetensors"
        assert summary["output"] == str(output)
        assert summary["keys"] == len(names_in(output))
        assert summary["verified"] is True
        assert 0 <= summary["largest_difference"] < 0.01
    assert names_in(tmp_path / "baked.safetensors") == names_in(DEMO_TRANSFORMER)


def test_a_style_is_chosen_by_the_settings(adapter: Path, tmp_path: Path) -> None:
    outputs = {
        style: tmp_path / f"{style}.safetensors" for style in ("comfy", "diffusers", "kohya")
    }
    for style, output in outputs.items():
        settings = ExportSettings(adapter=adapter, output=output, style=style, drop_norms=True)
        assert export_adapter(settings).output == str(output)

    names = [frozenset(names_in(output)) for output in outputs.values()]
    assert len(set(names)) == len(names)


def test_an_export_that_cannot_be_says_the_problem_apart_from_the_remedy(
    adapter: Path, tmp_path: Path
) -> None:
    lost, output = tmp_path / "lost.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError) as unread:
        export_adapter(ExportSettings(adapter=lost, output=output))
    with pytest.raises(ConfigError) as overwriting:
        export_adapter(BakeSettings(adapter=adapter, checkpoint=lost, output=lost))

    assert str(lost) in unread.value.problem
    assert unread.value.remedy
    assert overwriting.value.problem == f"{lost} is the base itself"
    assert overwriting.value.remedy == "give another --output"
    assert not output.exists()


def test_what_is_not_said_in_settings_of_an_export_is_as_it_is_in_options(tmp_path: Path) -> None:
    adapter, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    named = {"input": adapter, "output": output}

    assert export_settings(resolve("export-comfy", named)) == ExportSettings(
        adapter=adapter, output=output
    )
    baking = export_settings(resolve("export-comfy", named | {"merge": tmp_path / "c"}))
    assert baking == BakeSettings(adapter=adapter, checkpoint=tmp_path / "c", output=output)


def test_settings_of_files_that_nobody_writes_are_refused_when_they_are_written(
    tmp_path: Path,
) -> None:
    files = {"adapter": tmp_path / "a", "output": tmp_path / "b"}

    with pytest.raises(ConfigError, match="unknown adapter style 'confy'"):
        ExportSettings(**files, style="confy")
    with pytest.raises(ConfigError, match=r"save_precision is torch\.int8"):
        ExportSettings(**files, dtype=torch.int8)
    with pytest.raises(ConfigError, match=r"save_precision is torch\.float64"):
        BakeSettings(**files, checkpoint=tmp_path / "c", dtype=torch.float64)


def test_every_public_name_of_runs_is_there_and_is_no_module() -> None:
    for module in iter_modules(runs.__path__, "anima_pipe.runs."):
        import_module(module.name)

    offered = {name: getattr(runs, name) for name in dir(runs)}
    assert {"cache_latents", "encode_text", "export_adapter", "fetch_tokenizer"} <= set(offered)
    assert [name for name, it in offered.items() if isinstance(it, ModuleType)] == []
    assert offered["PipeError"] is PipeError
    with pytest.raises(AttributeError, match="no attribute 'cache_latent'"):
        _ = runs.cache_latent


def test_an_editor_completes_every_public_name_of_runs() -> None:
    tree = ast.parse(Path(runs.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, name.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }

    assert seen == {(module, name) for module, names in runs.NAMES.items() for name in names}


def test_settings_of_caching_are_read_without_torch() -> None:
    program = f"{TINY}print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(run_apart(sys.executable, "-c", program).ok().printed)

    assert {"torch", "numpy", "PIL", "click"}.intersection(modules) == set()
