"""Adapter files made wrong, on purpose or not: one clear error, or the right numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from adapter_cases import small_model
from click.testing import CliRunner, Result
from golden_model import golden_weights, relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anima_pipe.adapters import load_adapter
from anima_pipe.adapters.continued import continue_adapter
from anima_pipe.cli.main import main
from anima_pipe.errors import CheckpointError
from anima_pipe.export.adapter import convert_adapter
from anima_pipe.export.comfy import apply_adapter

MODULE = "blocks.1.mlp.layer1"
OUT, IN = golden_weights("a")[f"{MODULE}.weight"].shape
CONFIG = "lora_adapter_metadata"


def drawn(*shape: int, size: float = 0.1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * size


def lora(rank: int = 2, **more: Tensor) -> dict[str, Tensor]:
    return {"lora_A.weight": drawn(rank, IN), "lora_B.weight": drawn(OUT, rank), **more}


def loha(size: float) -> dict[str, Tensor]:
    shapes = {"w1_a": (OUT, 2), "w1_b": (2, IN), "w2_a": (OUT, 2), "w2_b": (2, IN)}
    return {f"hada_{name}": drawn(*shape, size=size) for name, shape in shapes.items()}


def whole_lokr(**more: Tensor) -> dict[str, Tensor]:
    return {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(OUT // 2, IN // 2), **more}


def written(path: Path, tensors: dict[str, Tensor], **header: str) -> Path:
    save_file({f"diffusion_model.{MODULE}.{n}": t for n, t in tensors.items()}, path, header)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refusal(*words: object) -> str:
    """Run a command that must refuse, and return what it says."""
    ended = run(*words)
    assert ended.exit_code == 2, ended.output
    return ended.output


COMMANDS = [
    ("info", "{file}"),
    ("convert", "--input", "{file}", "--output", "{out}"),
    ("merge", "{file}", "--output", "{out}"),
    ("resize", "--input", "{file}", "--rank", "1", "--output", "{out}"),
    ("export-comfy", "--input", "{file}", "--output", "{out}"),
]

WRONG = {
    "two alphas": (lora(alpha=torch.ones(2)), {}, "alpha has shape (2,)"),
    "an alpha without a number": (lora(alpha=torch.ones(0)), {}, "alpha has shape (0,)"),
    "a rank of 0": (lora(rank=0), {}, f"{MODULE}: lora_A.weight has shape (0, {IN})"),
    "a difference of nothing": ({"diff": torch.zeros(0, IN)}, {}, f"diff has shape (0, {IN})"),
    "depths that are JSON within JSON": (lora(), {"model_depths": "[" * 100_000}, "is not JSON"),
    "PEFT's rank 0": (lora(), {CONFIG: '{"r": 0, "lora_alpha": 1}'}, "states a rank of 0"),
    "PEFT's infinite rank": (lora(), {CONFIG: '{"r": Infinity, "lora_alpha": 1}'}, "no scale"),
    "PEFT's rank 0 of some": (
        lora(),
        {CONFIG: '{"r": 2, "lora_alpha": 1, "rank_pattern": {"layer1": 0}}'},
        "states a rank of 0",
    ),
    "PEFT's alpha that is none": (
        lora(),
        {CONFIG: '{"r": 2, "lora_alpha": NaN}'},
        "states an alpha of nan",
    ),
    "PEFT's JSON within JSON": (lora(), {CONFIG: "[" * 100_000}, "is not JSON"),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_by_its_name_and_the_old_output_stays(tmp_path, wrong, command):
    tensors, header, expected = WRONG[wrong]
    file = written(tmp_path / "wrong.safetensors", tensors, **header)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    said = refusal(*(word.format(file=file, out=out) for word in command))

    assert f"{file}" in said
    assert expected in said
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)], ids=str)
def test_an_alpha_is_one_number_whatever_its_axes(tmp_path, shape):
    file = written(tmp_path / "a.safetensors", lora(alpha=torch.full(shape, 3.0)))
    plain = written(tmp_path / "plain.safetensors", lora(alpha=torch.tensor(3.0)))
    base = tmp_path / "base.safetensors"
    save_file({f"net.{name}": tensor for name, tensor in golden_weights("a").items()}, base)

    export = convert_adapter(file, tmp_path / "out.safetensors")
    baked = run(
        *("export-comfy", "--input", file, "--merge", base),
        *("--output", tmp_path / "baked.safetensors"),
    )

    assert export.largest_difference == 0
    assert baked.exit_code == 0, baked.output
    wanted = apply_adapter(load_file(plain), golden_weights("a"))[f"{MODULE}.weight"]
    found = load_file(tmp_path / "baked.safetensors")[f"net.{MODULE}.weight"]
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["lora_B.weight", "alpha"])
def test_no_adapter_that_is_not_finite_is_put_on_a_model(tmp_path, name, value):
    tensors = lora(alpha=torch.tensor(1.0))
    tensors[name].view(-1)[0] = value
    file = written(tmp_path / "a.safetensors", tensors)

    for load in (load_adapter, lambda path, model: continue_adapter(path, "lora", model)):
        with pytest.raises(CheckpointError, match=rf"a\.safetensors.*not .*finite in .*{name}"):
            load(file, small_model())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_info_names_what_is_not_finite_and_its_json_is_json(tmp_path, value):
    tensors = lora(alpha=torch.tensor(value))
    file = written(tmp_path / "a.safetensors", tensors)

    printed = run("info", file, "--json")

    assert f"not every number is finite in {MODULE}.alpha" in printed.stderr
    (block,) = json.loads(printed.stdout, parse_constant=pytest.fail)["blocks"]
    assert block["norm"] is None
    assert block["alphas"] == [None]


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_the_alpha_that_nobody_heeds_may_be_infinite(tmp_path, precision):
    """A rank of 100,000, which asks for whole factors, is an infinite alpha in fp16."""
    alpha = torch.tensor(100_000.0).half()
    assert alpha.isinf()
    tensors = {name: tensor.to(precision) for name, tensor in whole_lokr().items()}
    file = written(tmp_path / "a.safetensors", tensors | {"alpha": alpha})

    export = convert_adapter(file, tmp_path / "out.safetensors")
    load_adapter(file, small_model())

    wanted, found = (
        apply_adapter(load_file(path), golden_weights("a"))[f"{MODULE}.weight"]
        for path in (file, export.path)
    )
    assert torch.equal(found, wanted)
    assert load_file(export.path)[f"diffusion_model.{MODULE}.alpha"].isfinite()


@pytest.mark.parametrize("kind", ["lora", "loha"])
@pytest.mark.parametrize("size", [("--rank", 1), ("--energy", 0.9)], ids=str)
def test_numbers_too_large_to_be_multiplied_are_said_to_be(tmp_path, kind, size):
    huge = {n: t * 1e30 for n, t in lora().items()} if kind == "lora" else loha(1e15)
    file = written(tmp_path / "huge.safetensors", huge)

    said = refusal("resize", "--input", file, "--output", tmp_path / "out.safetensors", *size)

    assert f"{MODULE}: not every number is finite, or they are too large" in said


@pytest.mark.parametrize("size", [(), ("--rank", 1), ("--whole",)], ids=str)
@pytest.mark.parametrize("other", [lora, lambda: {"diff": drawn(OUT, IN)}], ids=["lora", "diff"])
def test_adapters_of_two_shapes_are_not_merged(tmp_path, other, size):
    wide = {"lora_A.weight": drawn(2, IN + 1), "lora_B.weight": drawn(OUT, 2)}
    first = written(tmp_path / "first.safetensors", wide)
    second = written(tmp_path / "second.safetensors", other())

    said = refusal("merge", first, second, "--output", tmp_path / "out.safetensors", *size)

    assert f"{MODULE}.weight is of shape ({OUT}, {IN + 1}) in one adapter" in said
    assert f"({OUT}, {IN}) in another" in said


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "1e400"])
def test_a_strength_that_is_no_number_is_refused(tmp_path, strength):
    file = written(tmp_path / "a.safetensors", lora())

    said = refusal("merge", f"{file}:{strength}", "--output", tmp_path / "out.safetensors")

    assert f"a.safetensors:{strength} names a strength of" in said


def test_what_fp16_is_too_coarse_for_is_said_with_the_dtype_to_write(tmp_path):
    small = {"lora_A.weight": drawn(2, IN).half(), "lora_B.weight": drawn(OUT, 2, size=1e-4).half()}
    file = written(tmp_path / "a.safetensors", {**small, "alpha": torch.tensor(0.01)})
    merging = ("merge", file, "--output", tmp_path / "out.safetensors")

    said = refusal(*merging)

    assert f"the change of {MODULE} is off by" in said
    assert "by rounding alone" in said
    assert "write it in bf16 or float" in said
    assert run(*merging, "--save_precision", "bf16").exit_code == 0


def test_eight_bits_are_converted_into_a_dtype_that_holds_what_is_computed(tmp_path):
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in lora(rank=3).items()}
    file = written(tmp_path / "a.safetensors", {**eight, "alpha": torch.tensor(1.0)})

    for style in ("comfy", "kohya", "diffusers"):
        export = convert_adapter(file, tmp_path / f"{style}.safetensors", style)

        found = {t.dtype for n, t in load_file(export.path).items() if not n.endswith("alpha")}
        assert found == {torch.bfloat16}


def test_half_a_character_in_a_header_does_not_keep_a_file_from_being_read_or_written(tmp_path):
    made = {"command": "merge", "files": [{"name": "a\ud800.safetensors"}]}
    file = written(tmp_path / "a.safetensors", lora(), made_of=json.dumps(made))
    base = tmp_path / "base.safetensors"
    save_file({f"net.{name}": tensor for name, tensor in golden_weights("a").items()}, base)

    shown = run("info", file)
    for more in ((), ("--merge", base)):
        out = tmp_path / f"{len(more)}.safetensors"
        ended = run("export-comfy", "--input", file, "--output", out, *more)
        assert ended.exit_code == 0, ended.output
        with safe_open(out, framework="pt") as whole:
            assert r"a\\ud800.safetensors" in whole.metadata()["made_of"]

    assert r"a\ud800.safetensors, by merge" in shown.output


def test_an_output_whose_name_no_program_can_open_is_refused(tmp_path):
    file, out = written(tmp_path / "a.safetensors", lora()), tmp_path / "b\udcff.safetensors"

    ended = run("convert", "--input", file, "--output", out)

    assert ended.exit_code != 0
    assert rf"no reader of safetensors opens {tmp_path}/b\xff.safetensors" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
