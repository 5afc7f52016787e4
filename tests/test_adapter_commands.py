"""Commands on adapter files: what they say, and what their results do to a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, pretend_training, small_model, velocity
from click.testing import CliRunner, Result
from commands import ROOT, anima_pipe
from golden_model import golden_weights, relative_error
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.cli.main import main
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.export.bake import bake_adapter
from anima_pipe.export.comfy import apply_adapter

EXACT = [case for case in KINDS if "dora" not in case and not case.startswith("lokr")]
MERGEABLE = [case for case in KINDS if "dora" not in case]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def adapter_file(path: Path, case: str = "lora", seed: int = 1, **more) -> Path:
    kind, arguments = KINDS[case]
    adapter = create_adapter(kind, small_model(), **{**arguments, **more})
    return save_adapter(pretend_training(adapter, seed=seed), path)


def changed_velocity(*files: tuple[Path, float]) -> torch.Tensor:
    model = small_model()
    for path, strength in files:
        load_adapter(path, model, strength)
    return velocity(model)


@pytest.fixture
def base(tmp_path) -> Path:
    path = tmp_path / "base.safetensors"
    extra = {"first_stage_model.table": torch.arange(7)}
    save_file({f"net.{name}": t for name, t in golden_weights("a").items()} | extra, path)
    return path


@pytest.mark.parametrize("case", KINDS)
def test_info_counts_every_parameter_of_every_kind(tmp_path, case):
    path = adapter_file(tmp_path / "a.safetensors", case)

    printed = json.loads(run("info", path, "--json").stdout)

    tensors = {key: t for key, t in load_file(path).items() if not key.endswith("alpha")}
    assert printed["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert printed["model_depths"]["blocks"] == 2
    assert sum(row["modules"] for row in printed["blocks"]) == printed["modules"]
    assert {"blocks.0", "blocks.1"} <= {row["place"] for row in printed["blocks"]}


def test_info_is_a_table_with_kind_rank_alpha_and_norm(tmp_path):
    path = adapter_file(tmp_path / "a.safetensors", "dora-rows")

    said = run("info", path).stdout

    assert "kind        lora with DoRA, norm" in said
    assert "base        2 blocks, 2 llm_adapter.blocks" in said
    assert ["adapter_kind", "lora+norm"] in [line.split() for line in said.splitlines()]
    rows = [line.split() for line in said.splitlines()]
    row = next(row for row in rows if row[:2] == ["blocks.0", "lora"])
    assert row[:6] == ["blocks.0", "lora", "with", "DoRA", "10", "4"]
    assert row[6] == "3"


def test_info_shows_the_beginning_of_long_metadata_and_json_all_of_it(tmp_path):
    path = adapter_file(tmp_path / "a.safetensors", "dora-rows")
    long = json.dumps({f"tag {number}": 1 for number in range(500)})
    save_file(load_file(path), path, metadata={"ss_tag_frequency": long, "ss_seed": "42"})

    (line,) = (line for line in run("info", path).stdout.splitlines() if "ss_tag" in line)

    assert '{"tag 0": 1, "tag 1"' in line
    assert f"({len(long):,} letters; --json shows them all)" in line
    assert len(line) < 160
    assert json.loads(run("info", path, "--json").stdout)["metadata"]["ss_tag_frequency"] == long


def test_a_file_that_is_not_there_is_told_in_one_short_line(tmp_path):
    result = run("info", tmp_path / "gone.safetensors")

    assert f"error: {tmp_path / 'gone.safetensors'} does not exist\n" in result.output


def test_convert_writes_another_style_that_loads_the_same(tmp_path):
    path, converted = adapter_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"

    ended = run("convert", "--input", path, "--output", converted, "--save_format", "kohya")

    assert ended.exit_code == 0, ended.stderr
    assert all(key.startswith("lora_unet_") for key in load_file(converted))
    assert torch.equal(changed_velocity((converted, 1)), changed_velocity((path, 1)))


@pytest.mark.parametrize("case", EXACT)
def test_merging_adds_changes_up_exactly_at_their_strengths(tmp_path, case):
    first = adapter_file(tmp_path / "a.safetensors", case)
    second = adapter_file(tmp_path / "b.safetensors", seed=2)
    merged = tmp_path / "c.safetensors"

    ended = run("merge", f"{first}:0.5", f"{second}:-1.5", "--output", merged)

    assert ended.exit_code == 0, ended.stderr
    expected = changed_velocity((first, 0.5), (second, -1.5))
    assert relative_error(changed_velocity((merged, 1)), expected) < 1e-5


@pytest.mark.parametrize("case", MERGEABLE)
def test_merging_to_a_rank_that_holds_everything_loses_nothing(tmp_path, case):
    first = adapter_file(tmp_path / "a.safetensors", case)
    second = adapter_file(tmp_path / "b.safetensors", seed=2)
    merged = tmp_path / "c.safetensors"

    ended = run("merge", first, second, "--output", merged, "--rank", 64)

    assert ended.exit_code == 0, ended.stderr
    expected = changed_velocity((first, 1), (second, 1))
    assert relative_error(changed_velocity((merged, 1)), expected) < 1e-4


def test_a_merge_to_a_rank_is_the_best_of_that_rank(tmp_path):
    files = [adapter_file(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    merged, key = tmp_path / "c.safetensors", "diffusion_model.blocks.0.mlp.layer1"

    run("merge", *files, "--output", merged, "--rank", 3)

    def change(path: Path) -> torch.Tensor:
        tensors = load_file(path)
        scale = tensors[f"{key}.alpha"] / len(tensors[f"{key}.lora_A.weight"])
        return scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]

    whole = change(files[0]) + change(files[1])
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    torch.testing.assert_close(change(merged), best, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (["lokr", "lora"], "no exact sum"),
        (["dora-rows"], "export-comfy --merge"),
        (["dora-columns"], "export-comfy --merge"),
    ],
)
def test_what_cannot_be_merged_says_what_to_do(tmp_path, cases, words):
    files = [adapter_file(tmp_path / f"{case}.safetensors", case) for case in cases]

    ended = run("merge", *files, "--output", tmp_path / "c.safetensors")

    assert ended.exit_code != 0
    assert words in ended.stderr
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("energy", [0.9, 0.5])
def test_resizing_keeps_the_energy_asked_for_with_no_rank_more_than_needed(tmp_path, energy):
    path, small = adapter_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"

    ended = run("resize", "--input", path, "--output", small, "--energy", energy)

    assert ended.exit_code == 0, ended.stderr
    before, after = load_file(path), load_file(small)
    for key in [key for key in after if key.endswith("lora_A.weight")]:
        up = key.replace("lora_A", "lora_B")
        alpha = before[key.replace("lora_A.weight", "alpha")]
        whole = torch.linalg.svdvals(before[up] @ before[key] * alpha / len(before[key])).square()
        kept = torch.linalg.svdvals(after[up] @ after[key]).square().sum() / whole.sum()
        rank = len(after[key])
        assert kept >= energy - 1e-4
        assert rank == 1 or whole[: rank - 1].sum() / whole.sum() < energy


def test_resizing_leaves_norms_alone_and_a_lokr_becomes_a_lora(tmp_path):
    path, small = adapter_file(tmp_path / "a.safetensors", "lokr"), tmp_path / "b.safetensors"

    run("resize", "--input", path, "--output", small, "--rank", 64)

    assert {row.kind for row in load_adapter(small, small_model()).table()} == {"lora", "norm"}
    assert relative_error(changed_velocity((small, 1)), changed_velocity((path, 1))) < 1e-4


def test_a_size_is_asked_for(tmp_path):
    path = adapter_file(tmp_path / "a.safetensors")

    ended = run("resize", "--input", path, "--output", tmp_path / "b.safetensors")

    assert ended.exit_code != 0
    assert "give --rank or --energy" in ended.stderr


@pytest.mark.parametrize("size", [["--rank", 4], ["--energy", 0.999999]])
def test_extracting_finds_the_lora_that_was_baked_in(tmp_path, base, size):
    path = adapter_file(tmp_path / "a.safetensors")
    tuned, found = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    bake_adapter(path, base, tuned)

    ended = run(
        "extract",
        "--base",
        base,
        "--tuned",
        tuned,
        "--output",
        found,
        *size,
        "--save_precision",
        "fp32",
    )

    assert ended.exit_code == 0, ended.stderr
    assert relative_error(changed_velocity((found, 1)), changed_velocity((path, 1))) < 1e-3
    assert load_adapter(found, small_model()).table()


def test_extracting_a_lokr_finds_the_one_that_was_baked_in(tmp_path, base):
    path = adapter_file(tmp_path / "a.safetensors", "lokr-full")
    tuned, found = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    bake_adapter(path, base, tuned)

    ended = run(
        *("extract", "--base", base, "--tuned", tuned, "--output", found),
        *("--lokr_factor", 4, "--save_precision", "fp32"),
    )

    assert ended.exit_code == 0, ended.stderr
    assert {row.kind for row in load_adapter(found, small_model()).table()} == {"lokr", "norm"}
    assert relative_error(changed_velocity((found, 1)), changed_velocity((path, 1))) < 1e-3


def test_extracting_takes_the_biases_too(tmp_path, base):
    tensors = load_file(base)
    tensors["net.llm_adapter.out_proj.bias"] += 1
    tensors["net.blocks.0.mlp.layer1.weight"] += 1
    save_file(tensors, tmp_path / "tuned.safetensors")

    ended = run(
        *("extract", "--base", base, "--tuned", tmp_path / "tuned.safetensors"),
        *("--output", tmp_path / "found.safetensors", "--rank", 1),
    )

    assert ended.exit_code == 0
    bias = load_file(tmp_path / "found.safetensors")["diffusion_model.llm_adapter.out_proj.diff_b"]
    assert relative_error(bias.float(), torch.ones(len(bias))) < 1e-2


EXTRAS = {
    "net.pos_embedder.dim_spatial_range": torch.arange(4.0),
    "net.llm_adapter.rotary_emb.inv_freq": torch.ones(3),
    "net.accum_iteration": torch.tensor(7),
    "net.blocks.0.self_attn.attn_op._extra_state": torch.zeros(0, dtype=torch.uint8),
}


@pytest.mark.parametrize("which", ["base", "tuned", "both"])
def test_extracting_passes_over_what_says_nothing_about_the_model(tmp_path, base, which):
    tuned, tensors = tmp_path / "tuned.safetensors", load_file(base)
    name = "net.blocks.0.mlp.layer1.weight"
    save_file({**tensors, name: tensors[name] + 1} | (EXTRAS if which != "base" else {}), tuned)
    others = {key: torch.zeros_like(tensor) for key, tensor in EXTRAS.items()}
    save_file(tensors | (others if which != "tuned" else {}), base)

    ended = run(
        *("extract", "--base", base, "--tuned", tuned),
        *("--output", tmp_path / "found.safetensors", "--rank", 1),
    )

    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr == ""
    assert "1 modules" in ended.stdout


def test_extracting_refuses_a_quantised_file_by_name(tmp_path, base):
    tuned = tmp_path / "tuned.safetensors"
    scale = {"net.blocks.0.mlp.layer1.scale_weight": torch.ones(())}
    save_file(load_file(base) | scale, tuned)

    ended = run(
        *("extract", "--base", base, "--tuned", tuned),
        *("--output", tmp_path / "found.safetensors", "--rank", 1),
    )

    assert ended.exit_code != 0
    assert f"{tuned} is quantised: it holds blocks.0.mlp.layer1.scale_weight" in ended.stderr


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("bf16", "fp32"), "fp32"),
        (("fp32", "bf16"), "fp32"),
        (("bf16", "fp16", "bf16"), "fp32"),
        (("fp16", "fp16"), "fp16"),
        (("fp8", "bf16"), "bf16"),
        (("fp8", "fp16"), "fp32"),
        (("fp8",), "bf16"),
    ],
)
def test_a_merge_is_in_a_dtype_that_holds_the_numbers_of_all_its_sources(tmp_path, order, expected):
    dtypes = {
        "fp8": torch.float8_e4m3fn,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
    }
    files: list[Path] = []
    for number, name in enumerate(order):
        adapter = pretend_training(create_adapter("lora", small_model()), seed=number)
        path = tmp_path / f"{number}.safetensors"
        files.append(save_adapter(adapter, path, dtype=dtypes[name]))

    run("merge", *files, "--output", tmp_path / "sum.safetensors")

    found = {
        tensor.dtype
        for key, tensor in load_file(tmp_path / "sum.safetensors").items()
        if not key.endswith("alpha")
    }
    assert found == {dtypes[expected]}


def test_checkpoints_of_two_models_have_no_adapter_between_them(tmp_path, base):
    other = {name: t for name, t in golden_weights("a").items() if "blocks.1" not in name}
    save_file(other, tmp_path / "other.safetensors")

    ended = run(
        *("extract", "--base", base, "--tuned", tmp_path / "other.safetensors"),
        *("--output", tmp_path / "found.safetensors", "--rank", 1),
    )

    assert "give two checkpoints of one model" in ended.stderr


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_baked_checkpoint_has_the_weights_that_comfyui_computes(tmp_path, base, case, dtype):
    path, target = adapter_file(tmp_path / "a.safetensors", case), tmp_path / "baked.safetensors"

    baked = bake_adapter(path, base, target, strength=0.7, dtype=dtype)

    before, after = load_file(base), load_file(target)
    expected = apply_adapter(load_file(path), golden_weights("a"), 0.7)
    assert after.keys() == before.keys()
    assert torch.equal(after["first_stage_model.table"], before["first_stage_model.table"])
    tolerance = 1e-5 if dtype is None else torch.finfo(dtype).eps
    for name, weight in expected.items():
        assert after[f"net.{name}"].dtype == (dtype or torch.float32)
        assert relative_error(after[f"net.{name}"].float(), weight) <= tolerance, name
    assert baked.changed == 64
    assert baked.keys == len(before)
    assert baked.largest_difference <= tolerance


def test_export_comfy_bakes_into_a_checkpoint_where_it_is_told_to(tmp_path, base):
    path, target = adapter_file(tmp_path / "a.safetensors"), tmp_path / "baked.safetensors"

    ended = anima_pipe(
        "export-comfy",
        tmp_path / "summary.json",
        input=path,
        output=target,
        merge=base,
        merge_strength=0.5,
        save_precision="fp16",
    ).ok()

    assert ended.summary["verified"] is True
    assert ended.summary["keys"] == len(load_file(base))
    assert load_file(target)["net.blocks.0.mlp.layer1.weight"].dtype == torch.float16


def test_an_adapter_is_not_baked_into_a_model_of_another_depth(tmp_path, base):
    tensors = load_file(base)
    more = {
        n.replace("blocks.1", "blocks.2"): t.clone() for n, t in tensors.items() if "blocks.1" in n
    }
    save_file(tensors | more, base)

    with pytest.raises(CheckpointError, match=r"a model with 2 .*blocks, .* has 3"):
        bake_adapter(adapter_file(tmp_path / "a.safetensors"), base, tmp_path / "b.safetensors")


def test_a_base_is_not_overwritten_by_what_is_baked_of_it(tmp_path, base):
    with pytest.raises(ConfigError, match="is the base itself"):
        bake_adapter(adapter_file(tmp_path / "a.safetensors"), base, base)


@pytest.mark.parametrize("case", [case for case in KINDS if case.startswith("lokr")])
def test_one_lokr_alone_is_merged_exactly_as_a_lokr(tmp_path, case):
    path, merged = adapter_file(tmp_path / "a.safetensors", case), tmp_path / "b.safetensors"

    ended = run("merge", f"{path}:-0.5", "--output", merged)

    assert ended.exit_code == 0, ended.stderr
    assert {row.kind for row in load_adapter(merged, small_model()).table()} == {"lokr", "norm"}
    assert relative_error(changed_velocity((merged, 1)), changed_velocity((path, -0.5))) < 1e-5


def test_kinds_without_an_exact_sum_are_merged_to_whole_differences_on_request(tmp_path):
    files = [adapter_file(tmp_path / f"{case}.safetensors", case) for case in ("lokr", "loha")]
    merged, kohya = tmp_path / "c.safetensors", tmp_path / "d.safetensors"

    ended = run("merge", f"{files[0]}:0.5", files[1], "--output", merged, "--whole")
    refused = run("convert", "--input", merged, "--output", kohya, "--save_format", "kohya")

    assert ended.exit_code == 0, ended.stderr
    assert {row.kind for row in load_adapter(merged, small_model()).table()} == {"diff", "norm"}
    expected = changed_velocity((files[0], 0.5), (files[1], 1))
    assert relative_error(changed_velocity((merged, 1)), expected) < 1e-5
    assert "sd-scripts passes over diff" in refused.stderr
    assert not kohya.exists()
    patched = small_model()
    patched.load_state_dict(apply_adapter(load_file(merged), golden_weights("a")))
    assert relative_error(velocity(patched), expected) < 1e-5


MEASURED_BAKING = """
import sys
from pathlib import Path
from anima_pipe.adapters.reading import read_adapter_file
from anima_pipe.export.bake import bake_adapter

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))

adapter, base, small, target = map(Path, sys.argv[1:])
bake_adapter(adapter, small, target)  # What is loaded on the first use is not the base's.
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
bake_adapter(adapter, base, target)
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_baking_takes_memory_for_a_few_times_the_largest_tensor_and_not_for_the_model(
    tmp_path, base
):
    adapter = adapter_file(tmp_path / "a.safetensors")
    large, side = tmp_path / "large.safetensors", 2**21
    others = {f"first_stage_model.{number}": torch.ones(side) for number in range(40)}
    save_file({**load_file(base), **others}, large)
    assert large.stat().st_size > 300 * 2**20

    measured = subprocess.run(
        [sys.executable, "-c", MEASURED_BAKING, adapter, large, base, tmp_path / "b.safetensors"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    assert int(measured.stdout) < 6 * 4 * side + 16 * 2**20
