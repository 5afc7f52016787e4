"""The script for the first card, rehearsed from start to end on a processor with tiny models."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

# The whole rehearsal starts some thirty processes; a machine may have other work.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = ROOT / "bench" / "gpu.sh"

sys.path.insert(0, str(SCRIPT.parent))

from gpu.results import Results, read_rows  # noqa: E402 - a script's own package

FIGURES = {
    "Versions",
    "What the card can do",
    "The demo by all",
    "Compiling",
    "Checkpoint",
    "a training step at rank 16",
    "against diffusers, a step at rank 16",
    "training the model itself, checkpointed, batch 1",
    "Drawing",
    "Encoding pictures",
    "Encoding captions",
    "The twenty largest items of a step, LoRA, batch 1",
}

CLAIMS = (
    "golden a: velocity",
    "golden a: 8 gradients",
    "golden a: ten steps, guidance 4",
    "golden a: velocity in bfloat16",
    "golden a: velocity on a base in 8 bits",
    "steps of LoRA: losses as on a processor",
    "steps of LoKr: adapter as on a processor",
    "fp16 with its scaler: losses as in fp32",
    "ten steps of the model itself: changes as on a processor",
    "the model itself, bf16 throughout: losses as in fp32",
    "VAE: latents",
    "text: hidden states",
    "resumed with deterministic kernels: tensors that differ",
    "a state of the card goes on on the processor: adapter",
    "a state of the processor goes on on the card: adapter",
    "two processes through gloo: adapter as of one",
    "compiled blocks in float32: velocity",
    "all: the export is verified",
    "previews: 3 pictures, none of one colour",
)


@dataclass(frozen=True)
class Rehearsed:
    """What a run of the script came to."""

    code: int
    printed: str
    folder: Path

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """What gpu.json says of every part, by name."""
        told = json.loads((self.folder / "gpu.json").read_text())
        return {part["name"]: part for part in told["parts"]}

    @property
    def states(self) -> dict[str, str]:
        """How every part ended."""
        return {name: part["state"] for name, part in self.parts.items()}

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return all rows of a kind, of whatever part."""
        parts = self.parts.values()
        return [row for part in parts for row in part["rows"] if row["kind"] == kind]


def rehearse(folder: Path, *arguments: str | Path) -> Rehearsed:
    """Run the script without a card."""
    command = [SCRIPT, "--device", "cpu", "--small", "--out", folder, *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (folder / "gpu.json").exists(), ended.stderr
    return Rehearsed(ended.returncode, ended.stdout, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    return rehearse(tmp_path_factory.mktemp("whole") / "out")


def test_everything_runs_from_start_to_end(whole: Rehearsed):
    assert set(whole.states.values()) == {"ok"}, (whole.folder / "gpu.log").read_text()
    assert whole.code == 0
    assert whole.rows("failure") == []


def test_every_claim_is_checked_and_every_figure_has_its_table(whole: Rehearsed):
    claims = [row["what"] for row in whole.rows("check")]
    assert [claim for claim in CLAIMS if not any(claim in made for made in claims)] == []
    assert all(row["ok"] for row in whole.rows("check"))
    assert {row["table"] for row in whole.rows("figure")} == FIGURES


def test_the_steps_of_every_way_to_train_are_measured(whole: Rehearsed):
    steps = [row["columns"] for row in whole.rows("figure") if "training step" in row["table"]]

    ways = {(row["adapter"], row["batch"], row["base"]) for row in steps}
    bases = ("plain", "checkpointed", "deterministic", "int8", "int8, checkpointed")
    assert ways == {(a, b, base) for a in ("LoRA", "LoKr") for b in (1, 4) for base in bases}
    for row in steps:
        assert row["ms, least"] <= row["ms"] <= row["ms, most"]
        assert 0 < row["host ms"] <= row["ms"]
        assert row["data wait ms"] >= 0
        assert row["estimate GiB"] > 0
        assert row["TFLOP"] > 0
        assert row["% of measured peak"] > 0
    # Four pictures are four times the work of one; the text adapter is not the least of it here.
    flops = {(row["adapter"], row["batch"]): row["TFLOP"] for row in steps}
    assert flops["LoRA", 4] == pytest.approx(4 * flops["LoRA", 1], rel=0.01)


def test_both_peers_are_measured_plain_and_checkpointed(whole: Rehearsed):
    steps = [row["columns"] for row in whole.rows("figure") if "diffusers" in row["table"]]

    names = ("lora", "diffusers + peft", "lokr", "diffusers + lycoris")
    ways = {(row["step_of"], row["batch"], row["base"]) for row in steps}
    assert ways == {(n, b, how) for n in names for b in (1, 4) for how in ("plain", "checkpointed")}
    assert all(row["times ours"] == 1 for row in steps if row["step_of"] in ("lora", "lokr"))


def test_the_page_shows_the_parts_the_claims_and_the_tables(whole: Rehearsed):
    page = (whole.folder / "gpu.md").read_text()

    assert page.startswith("# A rehearsal")
    for name in [*whole.parts, "golden a: velocity", *(name.capitalize() for name in FIGURES)]:
        assert name in page
    log = (whole.folder / "gpu.log").read_text()
    assert [name for name in whole.parts if f"== {name}" not in log] == []


def test_a_part_that_fails_costs_itself_alone(tmp_path: Path):
    parts = ("figures_drawing", "figures_encoding")
    missing = tmp_path / "missing.safetensors"
    ended = rehearse(tmp_path / "out", "--parts", *parts, "--checkpoint", missing)

    assert ended.code == 1
    assert ended.states == {"figures_drawing": "failed", "figures_encoding": "ok"}
    (failure,) = ended.rows("failure")
    assert str(missing) in failure["error"]
    assert str(missing) in (ended.folder / "gpu.md").read_text()
    assert str(missing) in (ended.folder / "gpu.log").read_text()


def test_a_part_over_its_limit_is_killed_and_named(tmp_path: Path):
    # Long enough for nothing but the interpreter's start: the part cannot end by itself.
    limits = ("--limit", "proof_golden=0.1", "figures_checkpoint=0.1")
    parts = ("proof_golden", "figures_checkpoint", "figures_encoding")
    ended = rehearse(tmp_path / "out", "--parts", *parts, *limits)

    assert ended.code == 1
    states = {"proof_golden": "killed", "figures_checkpoint": "killed", "figures_encoding": "ok"}
    assert ended.states == states
    assert "proof_golden" in ended.printed
    assert "killed at its limit of 0.1 s" in (ended.folder / "gpu.log").read_text()
    assert "| proof_golden | killed |" in (ended.folder / "gpu.md").read_text()


def test_a_device_that_is_not_there_is_named(tmp_path: Path):
    ended = rehearse(tmp_path / "out", "--parts", "figures_encoding", "--device", "cuda:99")

    assert ended.states == {"figures_encoding": "failed"}
    (failure,) = ended.rows("failure")
    assert "device 'cuda:99' cannot be used" in failure["error"]


@pytest.mark.parametrize(("error", "holds"), [(0.1, True), (0.3, False), (math.nan, False)])
def test_a_claim_that_does_not_hold_fails_its_part(error: float, holds: bool, tmp_path: Path):
    results = Results(tmp_path / "rows.jsonl")
    results.check("before", 0.0, 0.2)
    results.check("claimed", error, 0.2)
    results.check("after", 0.0, 0.2)

    assert results.failed == (not holds)
    rows = [json.loads(line) for line in results.path.read_text().splitlines()]
    assert [row["ok"] for row in rows] == [True, holds, True]


def test_what_a_part_found_before_it_was_killed_within_a_line_is_read(tmp_path: Path):
    results = Results(tmp_path / "rows.jsonl")
    results.figure("Times", ms=1.5)
    with results.path.open("a") as file:
        file.write('{"kind": "fig')

    assert read_rows(results.path) == [{"kind": "figure", "table": "Times", "columns": {"ms": 1.5}}]


def test_parts_that_no_time_is_left_for_are_named_as_not_run(tmp_path: Path):
    parts = ("figures_encoding", "figures_drawing")
    ended = rehearse(tmp_path / "out", "--parts", *parts, "--seconds", "0.5")

    assert ended.code == 1
    assert ended.states == {"figures_encoding": "killed", "figures_drawing": "not run"}


def test_wheels_of_a_folder_come_before_what_is_installed(tmp_path: Path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    # Something that the script looks for and nothing else imports.
    write_wheel(wheels, "came_pytorch", "99.0")
    ended = rehearse(tmp_path / "out", "--parts", "card", "--wheels", wheels)

    assert ended.code == 0, ended.printed
    told = {row["columns"].get("of"): row["columns"] for row in ended.rows("figure")}
    assert told["came-pytorch"]["version"] == "99.0"


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """Write a wheel of one empty module."""
    info = f"{name}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", "\n".join([*metadata, ""]))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n")
    return path


@pytest.mark.parametrize(
    ("requires", "wanted", "most", "problem"),
    [
        ((), ["fox"], "9999", None),
        (("den; python_version < '3.13'", "moon; extra == 'night'"), ["fox"], "9999", None),
        (("cub>=1",), ["fox"], "9999", "requires cub>=1, which is in neither place"),
        ((), ["fox", "cub"], "9999", "cub is not there"),
        ((), ["fox"], "10", "are more than"),
    ],
)
def test_wheels_that_would_not_be_enough_are_noticed_before_they_are_carried(
    requires: tuple[str, ...], wanted: list[str], most: str, problem: str | None, tmp_path: Path
):
    write_wheel(tmp_path, "fox", "1.0", *requires)
    command = [sys.executable, ROOT / "tools" / "check_wheels.py", tmp_path, "--most-bytes", most]
    command += ["--wanted", *wanted, "--present", "den"]
    ended = subprocess.run(command, capture_output=True, text=True)

    assert "fox-1.0-py3-none-any.whl" in ended.stdout
    assert ended.returncode == (problem is not None)
    assert (problem or "") in ended.stderr
    assert bool(ended.stderr) == (problem is not None)
