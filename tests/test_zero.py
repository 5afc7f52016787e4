"""0 is a number: it counts as not given only where an option says so, when it is read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, assert_same, pretend_training, small_model, velocity
from click.testing import CliRunner
from commands import ROOT, anima_pipe, tensors_of
from golden_model import golden_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.cli.main import main
from anima_pipe.errors import ConfigError
from anima_pipe.export.comfy import apply_adapter
from anima_pipe.kohya.options import OPTIONS, Option, find_option
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.rows import Kind

Cached = dict[str, object]
NUMBERS = (Kind.INTEGER, Kind.NUMBER, Kind.COUNT_OR_SHARE)
NONE_BY_ZERO = [option for option in OPTIONS if option.zero_is_none]
LAYER = "diffusion_model.blocks.0.mlp.layer1."


def values_tested(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield every expression of a program whose truth decides something."""
    for node in ast.walk(tree):
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield test
            case ast.Assert(test=test) | ast.UnaryOp(op=ast.Not(), operand=test):
                yield test
            case ast.BoolOp(values=values):
                yield from values[:-1]
            case ast.comprehension(ifs=tests):
                yield from tests
            case _:
                pass


def is_optional_number(annotation: ast.expr | None) -> bool:
    parts = {part.strip() for part in ast.unparse(annotation).split("|")} if annotation else set()
    return "None" in parts and bool(parts & {"int", "float"})


def may_be_none_or_zero(program: ast.AST) -> set[str]:
    """Return the names that are annotated as a number or None, and as nothing else."""
    kinds: dict[str, set[bool]] = {}
    for node in ast.walk(program):
        if isinstance(node, ast.arg):
            kinds.setdefault(node.arg, set()).add(is_optional_number(node.annotation))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kinds.setdefault(node.target.id, set()).add(is_optional_number(node.annotation))
    return {name for name, found in kinds.items() if found == {True}}


def is_number_of_options(value: ast.expr) -> bool:
    """Tell whether a value is `options.value("name")` of an option that takes a number."""
    match value:
        case ast.Call(func=ast.Attribute(attr="value"), args=[ast.Constant(value=str(name))]):
            option = find_option(name)
            return option is not None and option.kind in NUMBERS
        case _:
            return False


def stands_in_for_zero(node: ast.AST) -> bool:
    """Tell whether a node is `x or 1`: a number for 0 too; `x or 0` is 0 either way."""
    match node:
        case ast.BoolOp(op=ast.Or(), values=[*_, ast.Constant(value=int() | float() as last)]):
            return last is not True and last != 0
        case _:
            return False


def test_no_number_of_the_library_counts_as_not_given_where_it_is_zero():
    files = [path for folder in ("anima_pipe", "stages") for path in (ROOT / folder).rglob("*.py")]
    trees = {path: ast.parse(path.read_text()) for path in files}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    of_classes = [line for _, node in nodes if isinstance(node, ast.ClassDef) for line in node.body]
    fields = may_be_none_or_zero(ast.Module(of_classes, []))
    found = [f"{path}:{node.lineno}" for path, node in nodes if stands_in_for_zero(node)]
    for path, function in nodes:
        if not isinstance(function, ast.FunctionDef):
            continue
        own = may_be_none_or_zero(function)
        for value in values_tested(function):
            by_name = isinstance(value, ast.Name) and value.id in own
            by_field = isinstance(value, ast.Attribute) and value.attr in fields
            if by_name or by_field or is_number_of_options(value):
                found.append(f"{path}:{value.lineno}: {ast.unparse(value)}")
    assert not found


# Options: 0 may say that there is none, which is settled where the option is read


@pytest.mark.parametrize("option", NONE_BY_ZERO, ids=lambda option: option.name)
def test_zero_says_that_there_is_none_where_the_help_says_so(option: Option, tmp_path: Path):
    assert option.kind in NUMBERS
    assert option.minimum == 0
    assert "0" in option.help
    file = tmp_path / "train_args.toml"
    file.write_text(f"{option.name} = 0\n")

    assert resolve("train", {option.name: "0"}).value(option.name) is None
    assert resolve("train", {}, file).value(option.name) is None


def test_zero_is_a_number_where_nothing_is_said_of_it():
    given = resolve("train", {"seed": "0", "noise_offset": "0", "max_validation_steps": "0"})

    assert given.value("seed", unset=1) == 0
    assert given.value("noise_offset", unset=1.0) == 0.0
    assert given.value("max_validation_steps") == 0


def test_saves_by_a_ratio_of_zero_do_not_win_over_saves_by_epochs():
    options = {"save_n_epoch_ratio": "0", "save_every_n_epochs": "2"}

    assert resolve("train", options).warnings == ()


def test_network_alpha_zero_is_the_rank(cached: Cached, tmp_path: Path):
    given = {**cached, "network_dim": 6, "network_alpha": 0}
    ended = anima_pipe("train", tmp_path / "summary.json", output_dir=tmp_path, **given).ok()

    path = tmp_path / "fox.safetensors"
    assert tensors_of(ended)[f"{LAYER}alpha"].item() == 6
    with safe_open(path, framework="pt") as file:
        assert float(file.metadata()["ss_network_alpha"]) == 6


def test_max_validation_steps_zero_validates_nothing(cached: Cached, tmp_path: Path):
    given = {**cached, "validation_split": 0.5, "max_train_steps": 1}
    anima_pipe("train", output_dir=tmp_path / "all", **given).ok()
    none = anima_pipe("train", output_dir=tmp_path / "none", max_validation_steps=0, **given).ok()

    assert "validation at step" not in none.said
    expected = (tmp_path / "all" / "fox.safetensors").read_bytes()
    assert (tmp_path / "none" / "fox.safetensors").read_bytes() == expected


# Below the options 0 is zero


@pytest.mark.parametrize("case", ["lora", "lokr", "loha"])
def test_a_file_whose_alpha_is_zero_changes_nothing_as_in_comfyui(case: str, tmp_path: Path):
    kind, arguments = KINDS[case]
    arguments = {**arguments, "train_norm": False}
    adapter = pretend_training(create_adapter(kind, small_model(), **arguments))
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    zero = {n: t * 0 if n.endswith("alpha") else t for n, t in load_file(path).items()}
    save_file(zero, path, metadata)

    weights = small_model().state_dict()
    assert_same(apply_adapter(zero, weights), weights)
    ours = small_model()
    load_adapter(path, ours)
    assert torch.equal(velocity(ours), velocity(small_model()))


def test_an_adapter_that_could_only_be_multiplied_by_zero_is_refused():
    with pytest.raises(ConfigError, match="network_alpha is 0"):
        create_adapter("lora", small_model(), network_dim=4, network_alpha=0)


@pytest.mark.parametrize("name", ["loraplus_lr_ratio", "loraplus_unet_lr_ratio"])
def test_a_lora_plus_ratio_of_zero_is_refused(name: str):
    with pytest.raises(ConfigError, match="loraplus_lr_ratio is 0"):
        create_adapter("lora", small_model(), **{name: 0})


@pytest.mark.parametrize(
    ("command", "option"),
    [("merge", "--rank"), ("merge", "--energy"), ("extract", "--lokr_factor")],
)
def test_a_size_of_zero_is_refused(command: str, option: str, tmp_path: Path):
    if command == "merge":
        adapter = pretend_training(create_adapter("lora", small_model()))
        given = [str(save_adapter(adapter, tmp_path / "a.safetensors"))]
    else:
        for name, factor in (("base", 1.0), ("tuned", 1.1)):
            tensors = {f"net.{n}": t * factor for n, t in golden_weights("a").items()}
            save_file(tensors, tmp_path / f"{name}.safetensors")
        given = ["--base", str(tmp_path / "base.safetensors")]
        given += ["--tuned", str(tmp_path / "tuned.safetensors")]
    output = tmp_path / "out.safetensors"
    ended = CliRunner().invoke(main, [command, *given, "--output", str(output), option, "0"])

    assert ended.exit_code == 2
    assert f"{option.strip('-')} is 0" in ended.stderr
    assert not output.exists()
