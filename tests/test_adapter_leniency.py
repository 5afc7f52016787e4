"""What of a file matches nothing, and adapters of models of another depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import pretend_training, small_model, velocity
from click.testing import CliRunner
from commands import anima_pipe
from safetensors.torch import load_file, save_file

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.reading import (
    KNOWN_DEPTHS,
    AdapterFile,
    read_adapter_file,
    refuse_other_depth,
)
from anima_pipe.cli.main import main
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.errors import CheckpointError
from anima_pipe.model import load_transformer

EXTRA = {
    "lora_te_layers_0_mlp.lora_down.weight": torch.ones(2, 4),
    "lora_te_layers_0_mlp.lora_up.weight": torch.ones(4, 2),
    "not_an_adapter": torch.ones(3),
}
"""A module that no transformer has, and a tensor of no adapter kind."""


def adapter_file(path: Path, model=None, style: str = "comfy", **extra: torch.Tensor) -> Path:
    adapter = pretend_training(create_adapter("lora", model or small_model(), network_dim=2))
    save_adapter(adapter, path, style)
    save_file({**load_file(path), **extra}, path)
    return path


def test_what_matches_nothing_is_left_out_with_a_warning_if_it_may(tmp_path):
    path = adapter_file(tmp_path / "a.safetensors", **EXTRA)
    plain = adapter_file(tmp_path / "b.safetensors")
    model, expected = small_model(), small_model()

    load_adapter(path, model, allow_unmatched=True)
    load_adapter(plain, expected)

    assert torch.equal(velocity(model), velocity(expected))


@pytest.mark.parametrize("key", EXTRA)
def test_what_matches_nothing_is_an_error_that_lists_it(tmp_path, key):
    path = adapter_file(tmp_path / "a.safetensors", **{key: EXTRA[key]})

    with pytest.raises(CheckpointError, match=key.partition(".")[0]):
        load_adapter(path, small_model())


def test_a_file_of_which_nothing_matches_is_an_error_even_so(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({key: tensor for key, tensor in EXTRA.items() if "." in key}, path)

    with pytest.raises(CheckpointError, match="1 of 1 modules are not in this model"):
        load_adapter(path, small_model(), allow_unmatched=True)


def test_commands_leave_out_what_matches_nothing_if_told_to(
    tmp_path: Path, cached: dict[str, object]
):
    model = load_transformer(DEMO_TRANSFORMER).requires_grad_(False)
    path = adapter_file(tmp_path / "a.safetensors", model, **EXTRA)
    exported = tmp_path / "b.safetensors"

    refused = anima_pipe("export-comfy", input=path, output=exported)
    allowed = anima_pipe("export-comfy", input=path, output=exported, allow_unmatched=True)
    given = {"max_train_steps": 1, "network_dim": 2, "allow_unmatched": True, **cached}
    trained = anima_pipe("train", output_dir=tmp_path, network_weights=path, **given)
    below = anima_pipe("train", output_dir=tmp_path, base_weights=[path], **given)

    assert refused.code == 2
    assert "not_an_adapter" in refused.said
    for ended in (allowed, trained, below):
        assert "not_an_adapter" in ended.ok().said
        assert "lora_te_layers_0_mlp; they are names of a text encoder" in ended.said
    assert load_file(exported).keys() == load_file(path).keys() - EXTRA.keys()


@pytest.mark.parametrize(
    "command",
    [["info"], ["convert", "--input"], ["resize", "--rank", "1", "--input"], ["merge"]],
    ids=lambda words: words[0],
)
def test_commands_on_files_do_so_too(tmp_path, command):
    path = adapter_file(tmp_path / "a.safetensors", **EXTRA)
    output = [] if command[0] == "info" else ["--output", str(tmp_path / "b.safetensors")]

    codes = [
        CliRunner().invoke(main, [*command, str(path), *output, *lenient]).exit_code
        for lenient in ([], ["--allow_unmatched"])
    ]

    assert codes[0] != 0
    assert codes[1] == 0


def of_depth(folder: Path, blocks: int, style: str, skipped: int = -1) -> Path:
    """Write an adapter, as other programs do without metadata, on so many blocks."""
    path = adapter_file(folder / f"{blocks}.safetensors", style=style)
    mark = "_blocks_0_" if style == "kohya" else ".blocks.0."
    one = {key: t for key, t in load_file(path).items() if mark in key and "llm" not in key}
    save_file(
        {
            key.replace(mark, mark.replace("0", str(number))): tensor.clone()
            for number in range(blocks)
            for key, tensor in one.items()
            if number != skipped
        },
        path,
    )
    return path


@pytest.mark.parametrize("style", ["comfy", "kohya"])
@pytest.mark.parametrize("deeper", [36, 40, 52])
def test_an_adapter_of_28_blocks_is_not_half_applied_to_more(tmp_path, style, deeper):
    file = read_adapter_file(of_depth(tmp_path, 28, style))

    with pytest.raises(CheckpointError, match=rf"changes 28 blocks, .* has {deeper}"):
        refuse_other_depth(file, {"blocks": deeper})
    refuse_other_depth(file, {"blocks": 28})


def is_refused(file: AdapterFile, blocks: int) -> bool:
    try:
        refuse_other_depth(file, {"blocks": blocks})
    except CheckpointError:
        return True
    return False


@pytest.mark.parametrize(("blocks", "skipped"), [(5, -1), (28, 3)])
def test_an_adapter_of_some_blocks_may_be_of_any_model(tmp_path, blocks, skipped):
    file = read_adapter_file(of_depth(tmp_path, blocks, "comfy", skipped))

    assert not [depth for depth in KNOWN_DEPTHS if is_refused(file, depth)]


def test_who_trained_28_of_more_blocks_can_say_so(tmp_path):
    path = of_depth(tmp_path, 28, "comfy")

    assert is_refused(read_adapter_file(path), 40)
    assert not is_refused(read_adapter_file(path, allow_unmatched=True), 40)
