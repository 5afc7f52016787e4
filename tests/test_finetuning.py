"""Training without an adapter: what a run of the model's own weights leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files_in
from safetensors.torch import load_file, save_file
from training_calls import assert_refused, into, metadata

from anima_pipe import demo, runs
from anima_pipe.adapters import load_adapter
from anima_pipe.model import PARTS, load_transformer


@pytest.fixture(scope="module")
def whole(settings: runs.TrainSettings) -> runs.TrainSettings:
    """Three steps of the embedded model itself."""
    return replace(settings, adapter=runs.NoAdapter(), learning_rate=1e-3)


def weights(summary: runs.TrainSummary) -> dict[str, torch.Tensor]:
    """Return the checkpoint that a run ended with, by the names of the model."""
    assert summary.output is not None
    tensors = load_file(summary.output)
    assert all(name.startswith("net.") for name in tensors)
    return {name.removeprefix("net."): tensor for name, tensor in tensors.items()}


def start() -> dict[str, torch.Tensor]:
    return load_transformer(demo.DEMO_TRANSFORMER).state_dict()


def rates(**given: float) -> tuple[runs.PartRate, ...]:
    return tuple(
        runs.PartRate(name=name, pattern=PARTS[name], rate=rate) for name, rate in given.items()
    )


def test_every_weight_of_the_model_is_trained_and_saved_under_the_released_names(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    trained, before = weights(runs.train(into(tmp_path, whole))), start()

    assert trained.keys() == before.keys()
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    same = [name for name, tensor in trained.items() if torch.equal(tensor, before[name])]
    assert same == []
    loaded = load_transformer(tmp_path / "fox.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


def test_a_checkpoints_header_is_that_of_a_checkpoint(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    runs.train(into(tmp_path, whole))

    header = metadata(tmp_path / "fox.safetensors")
    assert header["modelspec.architecture"] == "anima-preview"
    assert header["modelspec.title"] == "fox"
    assert header["ss_steps"] == "3"
    assert header["ss_sd_model_name"] == demo.DEMO_TRANSFORMER.name
    assert not any(name.startswith(("ss_network", "adapter_", "sshs_")) for name in header)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_checkpoint_takes_the_precision_asked_for(
    precision: torch.dtype, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    in_full = weights(runs.train(into(tmp_path / "full", whole)))
    save = replace(whole.save, dtype=precision)
    shorter = weights(runs.train(into(tmp_path / "short", whole, save=save)))

    assert all(tensor.equal(in_full[name].to(precision)) for name, tensor in shorter.items())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_trains_alone_or_stays_to_the_bit(
    part: str, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    before = start()
    length = runs.LengthSettings(max_train_steps=1)
    given: dict[str, tuple[float, dict[str, float]]] = {
        "alone": (0.0, {part: 1e-3}),
        "without": (1e-3, {part: 0.0}),
    }
    moved: dict[str, set[str]] = {}
    for name, (rate, own) in given.items():
        adapter = runs.NoAdapter(part_rates=rates(**own))
        changes: dict[str, Any] = {"adapter": adapter, "learning_rate": rate, "length": length}
        after = weights(runs.train(into(tmp_path / name, whole, **changes)))
        moved[name] = {n for n, tensor in after.items() if not tensor.equal(before[n])}

    (only,) = rates(**{part: 1.0})
    of_part = {name for name in before if only.holds(name.rpartition(".")[0])}
    assert moved == {"alone": of_part, "without": before.keys() - of_part}


def test_a_run_goes_on_from_its_state_to_the_bits_of_one_in_one_go(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    in_one_go = runs.train(into(tmp_path / "whole", whole, ema_decay=0.9))
    states = runs.StateSettings(at_end=True)
    length = runs.LengthSettings(max_train_steps=2)
    given: dict[str, Any] = {"ema_decay": 0.9, "length": length, "states": states}
    first = runs.train(into(tmp_path / "parts", whole, **given))
    assert first.state_dir is not None

    going_on = runs.StateSettings(resume=Path(first.state_dir))
    second = runs.train(into(tmp_path / "parts", whole, ema_decay=0.9, states=going_on))

    assert second.steps == 3
    for name in ("fox.safetensors", "fox-ema.safetensors"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert files[0] == files[1]
    assert in_one_go.final_loss is not None


def test_a_state_of_an_adapter_is_none_of_the_models_own(
    settings: runs.TrainSettings, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    states = runs.StateSettings(at_end=True)
    length = runs.LengthSettings(max_train_steps=1)
    adapted = runs.train(into(tmp_path, settings, states=states, length=length))
    assert adapted.state_dir is not None

    going_on = runs.StateSettings(resume=Path(adapted.state_dir))
    assert_refused(
        lambda: runs.train(into(tmp_path, whole, states=going_on)),
        "network_module: lora then, none now",
        remedy="put the old values back: the state has other tensors than this model",
    )


def test_accumulation_checkpointing_and_clipping_act_on_the_models_weights(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    plain = weights(runs.train(into(tmp_path / "plain", whole)))
    model = replace(whole.model, gradient_checkpointing=True)
    again = weights(runs.train(into(tmp_path / "again", whole, model=model)))
    assert all(torch.allclose(tensor, plain[n], atol=1e-6) for n, tensor in again.items())

    length = runs.LengthSettings(max_train_steps=3, gradient_accumulation_steps=2)
    several = weights(runs.train(into(tmp_path / "several", whole, length=length)))
    assert not any(tensor.equal(plain[name]) for name, tensor in several.items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_mixed_precision_no_small_step_is_lost(
    precision: str, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    model = replace(whole.model, mixed_precision=precision)
    before = start()
    computed: list[torch.dtype] = []

    def look(training: runs.Training) -> list[runs.Hook]:
        computed.append(training.transformer.dtype)
        return []

    settings = into(tmp_path, whole, model=model, learning_rate=1e-7)
    trained = weights(runs.train(settings, look))

    assert computed == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    name = "blocks.0.mlp.layer1.weight"
    steps = (trained[name] - before[name]).abs()
    # Three steps of Adam, each of about the learning rate: far below what halves can tell.
    assert 5e-8 < steps.mean() < 4e-7
    unmoved = trained[name].bfloat16() == before[name].bfloat16()
    assert unmoved.float().mean() > 0.99


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "AdamWScheduleFree"])
def test_a_run_in_bf16_throughout_goes_on_from_its_state_to_the_same_bits(
    optimizer: str, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "adapter": runs.NoAdapter(full_bf16=True),
        "optimizer": runs.OptimizerConfig(optimizer_type=optimizer),
        "model": replace(whole.model, mixed_precision="bf16"),
    }
    in_one_go = weights(runs.train(into(tmp_path / "whole", whole, **given)))
    # What is saved of a schedule-free optimizer is an average, which is finer.
    saved = torch.float32 if optimizer.endswith("ScheduleFree") else torch.bfloat16
    assert {tensor.dtype for tensor in in_one_go.values()} == {saved}
    length, states = runs.LengthSettings(max_train_steps=1), runs.StateSettings(at_end=True)
    first = runs.train(into(tmp_path / "parts", whole, length=length, states=states, **given))
    assert first.state_dir is not None
    state = load_file(Path(first.state_dir) / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}

    going_on = runs.StateSettings(resume=Path(first.state_dir))
    second = weights(runs.train(into(tmp_path / "parts", whole, states=going_on, **given)))

    assert all(torch.equal(tensor, in_one_go[name]) for name, tensor in second.items())


UNFIT: dict[str, dict[str, Any]] = {
    "fp8_base": {"model": {"fp8_base": True}},
    "save_format": {"save": {"style": "kohya"}},
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_of_adapters_alone_is_refused_by_its_name(
    name: str, whole: runs.TrainSettings
) -> None:
    changes = {part: replace(getattr(whole, part), **own) for part, own in UNFIT[name].items()}
    assert_refused(lambda: replace(whole, **changes), name, "without an adapter")


def test_a_model_whose_parts_all_have_a_rate_of_zero_is_refused_before_anything_is_encoded(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    everything = (runs.PartRate(name="all", pattern=".*", rate=0.0),)
    adapter = runs.NoAdapter(part_rates=everything)
    assert_refused(
        lambda: runs.train(into(tmp_path, whole, adapter=adapter)), "nothing is left to train"
    )
    assert files_in(tmp_path) == set()


def test_a_model_that_others_share_is_not_trained_itself(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(whole.model, "cpu")
    assert_refused(lambda: runs.train(into(tmp_path, whole), base=base), "the base is given")


def test_weights_of_which_all_train_are_not_sharded(
    whole: runs.TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert_refused(lambda: runs.train(into(tmp_path, whole)), "FSDP is asked for")


def test_a_text_adapter_from_a_file_of_its_own_is_in_the_checkpoint(
    whole: runs.TrainSettings, tmp_path: Path
) -> None:
    tensors = {n.removeprefix("net."): t for n, t in load_file(demo.DEMO_TRANSFORMER).items()}
    files = {True: tmp_path / "text.safetensors", False: tmp_path / "dit.safetensors"}
    for of_text, path in files.items():
        own = {n: t for n, t in tensors.items() if n.startswith("llm_adapter.") == of_text}
        save_file(own, path)
    model = replace(whole.model, transformer=files[False], llm_adapter=files[True])

    apart = weights(runs.train(into(tmp_path / "apart", whole, model=model)))
    together = weights(runs.train(into(tmp_path / "together", whole)))

    assert apart.keys() == together.keys()
    assert all(torch.equal(tensor, together[name]) for name, tensor in apart.items())
    assert (
        metadata(tmp_path / "apart" / "fox.safetensors")["ss_llm_adapter_name"] == files[True].name
    )


def test_training_starts_from_the_model_with_the_adapters_that_are_merged_into_it(
    settings: runs.TrainSettings, whole: runs.TrainSettings, tmp_path: Path
) -> None:
    length = runs.LengthSettings(max_train_steps=1)
    adapted = runs.train(into(tmp_path / "lora", settings, length=length))
    assert adapted.output is not None
    model = replace(whole.model, base_weights=((Path(adapted.output), 0.5),))
    still = {"model": model, "learning_rate": 0.0, "length": length}
    merged = weights(runs.train(into(tmp_path / "merged", whole, **still)))

    expected = load_transformer(demo.DEMO_TRANSFORMER)
    load_adapter(adapted.output, expected, 0.5).merge()
    moved = [n for n, t in start().items() if not torch.equal(t, merged[n])]
    assert moved
    assert all(torch.equal(merged[name], t) for name, t in expected.state_dict().items())
