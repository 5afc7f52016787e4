"""What the options of the adapter, the optimizer and the files of a run do, told by the results."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import MODEL, Ended, anima_pipe, files_in, tensors_of, write_dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Cached = dict[str, object]
Tensors = dict[str, torch.Tensor]
LAYER = "diffusion_model.blocks.0.mlp.layer1."
DOWN, UP = f"{LAYER}lora_A.weight", f"{LAYER}lora_B.weight"


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **cached, **values).ok()


@pytest.fixture(scope="module")
def plain(cached: Cached, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The adapter of two plain steps, that others are compared with."""
    return tensors_of(train(cached, tmp_path_factory.mktemp("plain")))


# The adapter


@pytest.mark.parametrize(
    ("module", "suffix"),
    [
        ("networks.lora_anima", "lora_A.weight"),
        ("networks.lokr_anima", "lokr_w1"),
        ("networks.loha", "hada_w1_a"),
    ],
)
def test_network_module_says_which_tensors_are_trained(
    module: str, suffix: str, cached: Cached, tmp_path: Path
):
    tensors = tensors_of(train(cached, tmp_path, network_module=module))

    assert LAYER + suffix in tensors


def test_network_dim_and_network_alpha_are_those_of_the_file(cached: Cached, tmp_path: Path):
    tensors = tensors_of(train(cached, tmp_path, network_dim=6, network_alpha=3))

    assert tensors[DOWN].shape[0] == 6
    assert tensors[f"{LAYER}alpha"].item() == 3


def test_network_dropout_leaves_inputs_out(cached: Cached, plain: Tensors, tmp_path: Path):
    dropping = tensors_of(train(cached, tmp_path, network_dropout=0.5))

    assert not torch.equal(dropping[UP], plain[UP])


def test_network_args_reach_the_adapter(cached: Cached, tmp_path: Path):
    tensors = tensors_of(train(cached, tmp_path, network_args=["network_reg_dims=.*mlp.*=2"]))

    assert tensors[DOWN].shape[0] == 2
    assert tensors["diffusion_model.blocks.0.self_attn.q_proj.lora_A.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("option", "part"), [("train_norm", "w_norm"), ("train_llm_adapter", "llm_adapter")]
)
def test_parts_are_trained_unless_switched_off(
    option: str, part: str, cached: Cached, plain: Tensors, tmp_path: Path
):
    without = tensors_of(train(cached, tmp_path, **{option: False}))

    assert any(part in key for key in plain)
    assert not any(part in key for key in without)


def test_network_weights_are_where_training_starts(cached: Cached, plain: Tensors, tmp_path: Path):
    save = tmp_path / "start.safetensors"
    shutil.copy(str(train(cached, tmp_path / "first").ok().summary["output"]), save)

    tensors = tensors_of(train(cached, tmp_path, network_weights=save, learning_rate=0))

    assert all(torch.equal(tensors[key], plain[key]) for key in plain)


def test_dim_from_weights_takes_the_rank_of_the_file(cached: Cached, tmp_path: Path):
    start = train(cached, tmp_path / "first", network_dim=3).summary["output"]

    values = {"network_weights": start, "network_dim": 8, "dim_from_weights": True}
    run = train(cached, tmp_path / "second", **values)

    assert tensors_of(run)[DOWN].shape[0] == 3
    assert "network_dim" not in run.said


def test_base_weights_are_merged_at_their_multiplier(
    cached: Cached, plain: Tensors, tmp_path: Path
):
    below = train(cached, tmp_path / "below").summary["output"]

    def on_top(name: str, **values: object) -> torch.Tensor:
        return tensors_of(train(cached, tmp_path / name, base_weights=[below], **values))[UP]

    assert torch.equal(on_top("none", base_weights_multiplier=[0]), plain[UP])
    assert not torch.equal(on_top("whole"), plain[UP])
    assert not torch.equal(on_top("half", base_weights_multiplier=[0.5]), on_top("one"))


# The optimizer


@pytest.mark.parametrize("option", ["learning_rate", "unet_lr"])
def test_a_rate_of_zero_trains_nothing(option: str, cached: Cached, tmp_path: Path):
    tensors = tensors_of(train(cached, tmp_path, **{option: 0}))

    assert tensors[UP].abs().max() == 0


def test_a_run_says_that_its_rate_was_not_set(cached: Cached, tmp_path: Path):
    said = train(cached, tmp_path / "unset", learning_rate=None, max_train_steps=1).said
    assert "learning_rate is not set" in said
    assert "learning_rate is not set" not in train(cached, tmp_path / "set", max_train_steps=1).said


def test_optimizer_type_and_optimizer_args_shape_the_step(cached: Cached, tmp_path: Path):
    def largest(name: str, *args: str) -> float:
        values = {"optimizer_type": name, "optimizer_args": [*args] or None, "max_train_steps": 1}
        folder = tmp_path / "-".join((name, *args))
        return (
            tensors_of(train(cached, folder, learning_rate=0.125, **values))[UP].abs().max().item()
        )

    # AdamW's first step is its rate wherever there is a gradient; SGD's is its rate times it.
    assert largest("AdamW") == pytest.approx(0.125, rel=1e-3)
    assert largest("SGD") < 0.125
    assert largest("AdamW", "eps=1e6") < 1e-3


def test_max_grad_norm_scales_the_gradients_down(cached: Cached, tmp_path: Path):
    def norm(limit: float) -> float:
        values = {"optimizer_type": "SGD", "learning_rate": 1, "max_train_steps": 1}
        tensors = tensors_of(train(cached, tmp_path / str(limit), max_grad_norm=limit, **values))
        trained = [t for key, t in tensors.items() if key.endswith(("lora_B.weight", "w_norm"))]
        return sum(t.square().sum().item() for t in trained) ** 0.5

    # Every B and norm starts at zero, and no A has a gradient while B is zero.
    assert norm(0) > 1e-3
    assert norm(1e-3) == pytest.approx(1e-3, rel=1e-2)


def rates(cached: Cached, folder: Path, **values: object) -> list[float]:
    """The learning rates of eight steps, relative to the one that was set."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {"learning_rate": 1e-3, "max_train_steps": 8, "log_with": "tensorboard"} | values
    train(cached, folder / "out", logging_dir=folder / "logs", **given)
    events = EventAccumulator(str(next((folder / "logs").iterdir())))
    events.Reload()
    tag = min(tag for tag in events.Tags()["scalars"] if tag.startswith("lr/"))
    return [event.value / 1e-3 for event in events.Scalars(tag)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr_scheduler": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4},
            [0, 0.25, 0.5, 0.75, 1, 1, 1, 1],
        ),
        (
            {"lr_scheduler": "linear", "lr_warmup_steps": 0.5},
            [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25],
        ),
        (
            {"lr_scheduler": "polynomial", "lr_scheduler_power": 2},
            [(1 - step / 8) ** 2 for step in range(8)],
        ),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2},
            [1, 0.8536, 0.5, 0.1464] * 2,
        ),
        (
            {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.5},
            [1, 0.981, 0.9268, 0.8457, 0.75, 0.6543, 0.5732, 0.519],
        ),
    ],
)
def test_the_rate_moves_as_the_schedule_says(
    values: dict[str, object], expected: list[float], cached: Cached, tmp_path: Path
):
    found = rates(cached, tmp_path, **values)

    assert found == pytest.approx(expected, abs=2e-3)


# Length, seed and states


def steps_of(cached: Cached, folder: Path, **values: object) -> int:
    return train(cached, folder, **values).summary["steps"]


def test_the_length_is_given_in_steps_or_epochs(cached: Cached, tmp_path: Path):
    assert steps_of(cached, tmp_path / "steps", max_train_steps=3) == 3
    # Six pictures in two buckets are four batches of two.
    assert steps_of(cached, tmp_path / "epochs", max_train_epochs=2) == 8


def test_gradient_accumulation_steps_take_several_batches_each(cached: Cached, tmp_path: Path):
    values = {"max_train_epochs": 2, "gradient_accumulation_steps": 2}

    assert steps_of(cached, tmp_path, **values) == 4


def test_dataset_repeats_and_train_batch_size_make_the_epoch(
    cached: Cached, pictures: Path, tmp_path: Path
):
    small = {"resolution": 128, "bucket_reso_steps": 32, "cache_dir": cached["cache_dir"]}
    given = {"dataset_config": pictures, **small}

    run = train(given, tmp_path, dataset_repeats=4, train_batch_size=8)

    assert "images      6, 24 visits per epoch" in run.said
    assert "batches     4 per epoch" in run.said


@pytest.mark.parametrize("option", ["save_state", "save_state_on_train_end"])
def test_a_state_is_saved_at_the_end_where_it_is_asked_for(
    option: str, cached: Cached, tmp_path: Path
):
    without = train(cached, tmp_path / "without").summary["state_dir"]
    state = train(cached, tmp_path / "with", **{option: True}).summary["state_dir"]

    assert without is None
    assert Path(state).is_dir()


def saves(folder: Path) -> set[str]:
    """What a run saved, by the end of its name."""
    return {path.name.removeprefix("fox") for path in folder.glob("fox*")}


LONG = {"max_train_steps": 6, "save_state": True}


def test_save_last_n_steps_keeps_the_last_saves(cached: Cached, tmp_path: Path):
    values = {**LONG, "max_train_steps": 12, "save_every_n_steps": 3, "save_last_n_steps": 6}
    train(cached, tmp_path / "all", **values)
    train(cached, tmp_path / "more", **values, save_last_n_steps_state=9)

    adapters = {f"-step{step:08d}.safetensors" for step in (6, 9, 12)} | {".safetensors"}
    few, more = (saves(tmp_path / name) for name in ("all", "more"))
    assert {name for name in few if name.endswith(".safetensors")} == adapters
    # The last step's is the one that the run ends with.
    states = {f"-step{step:08d}-state" for step in (6, 9)} | {"-state"}
    assert few == adapters | states
    assert more == few | {"-step00000003-state"}


def test_what_is_saved_at_the_last_step_is_what_the_run_ends_with(cached: Cached, tmp_path: Path):
    train(cached, tmp_path, **LONG, save_every_n_steps=2)
    names = ("fox-step00000006", "fox")
    by_step, final = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    assert by_step.keys() == final.keys()
    assert all(by_step[name].equal(tensor) for name, tensor in final.items())


@pytest.mark.parametrize(("steps", "epoch"), [(7, 1), (9, 2)])
def test_a_save_by_steps_removes_none_by_epochs_nor_the_other_way_round(
    steps: int, epoch: int, cached: Cached, tmp_path: Path
):
    # Four steps an epoch: the save of step 5 comes in the second, whose own follows it.
    values = {"max_train_steps": steps, "save_every_n_steps": 5, "save_last_n_steps": 2}
    train(cached, tmp_path, **values, save_every_n_epochs=1, save_last_n_epochs=1)
    by_epoch = f"-{epoch:06d}.safetensors"
    assert saves(tmp_path) == {"-step00000005.safetensors", by_epoch, ".safetensors"}


def test_save_last_n_epochs_keeps_the_last_saves(cached: Cached, tmp_path: Path):
    values = {**LONG, "max_train_epochs": 4, "save_every_n_epochs": 1, "save_last_n_epochs": 1}
    train(cached, tmp_path / "one", **values)
    train(cached, tmp_path / "more", **values, save_last_n_epochs_state=2)

    one, more = (saves(tmp_path / name) for name in ("one", "more"))
    assert {name for name in one if name.endswith(".safetensors")} == {
        "-000003.safetensors",
        ".safetensors",
    }
    assert len({name for name in more if "state" in name}) > len(
        {name for name in one if "state" in name}
    )


# Files and logs


def test_results_are_named_for_output_name_and_carry_training_comment(
    cached: Cached, tmp_path: Path
):
    train(cached, tmp_path, output_name="vixen", training_comment="of the north")

    assert "vixen.safetensors" in files_in(tmp_path)
    with safe_open(tmp_path / "vixen.safetensors", framework="pt") as file:
        assert file.metadata()["ss_training_comment"] == "of the north"


def test_save_model_as_safetensors_is_what_is_written(cached: Cached, tmp_path: Path):
    train(cached, tmp_path, save_model_as="safetensors")

    assert load_file(tmp_path / "fox.safetensors")


@pytest.mark.parametrize(
    ("style", "key"), [("comfy", UP), ("kohya", "lora_unet_blocks_0_mlp_layer1.lora_up.weight")]
)
def test_save_format_names_the_tensors(style: str, key: str, cached: Cached, tmp_path: Path):
    assert key in tensors_of(train(cached, tmp_path, save_format=style))


@pytest.mark.parametrize("prefix", ["try", "try_"])
def test_logs_go_where_logging_dir_and_log_prefix_say(prefix: str, cached: Cached, tmp_path: Path):
    values = {"logging_dir": tmp_path / "curves", "log_prefix": prefix}
    train(cached, tmp_path / "logged", log_with="tensorboard", **values)
    (log,) = (tmp_path / "curves").iterdir()
    shutil.rmtree(tmp_path / "curves")
    train(cached, tmp_path / "silent", log_with="none", **values)

    assert re.fullmatch(r"try_\d{8}_\d{6}", log.name)
    assert not (tmp_path / "curves").exists()


def test_summary_json_holds_what_a_command_came_to(cached: Cached, tmp_path: Path):
    anima_pipe("train", output_dir=tmp_path, **cached, summary_json=tmp_path / "end.json").ok()

    assert json.loads((tmp_path / "end.json").read_text())["steps"] == 2


def test_a_command_that_fails_leaves_no_summary_of_an_earlier_one(tmp_path: Path):
    summary = tmp_path / "end.json"
    summary.write_text('{"steps": 2}')

    ended = anima_pipe("cache-latents", summary, dataset_config=tmp_path / "none.toml")

    assert ended.code != 0
    assert ended.summary is None


def drawn(cached: Cached, folder: Path, **values: object) -> set[str]:
    """The steps, in six letters, at which previews were drawn."""
    (folder / "prompts.txt").write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    train(cached, folder / "out", sample_prompts=folder / "prompts.txt", **values)
    return {path.stem.split("_")[1] for path in (folder / "out" / "sample").glob("fox_*_00.png")}


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"sample_at_first": True}, {"000000", "000004"}),
        ({"sample_every_n_steps": 2}, {"000002", "000004"}),
        ({"sample_every_n_epochs": 1, "max_train_epochs": 2}, {"000004", "000008"}),
        ({"sample_sampler": "euler"}, {"000004"}),
    ],
)
def test_previews_are_drawn_when_they_are_asked_for(
    values: dict[str, object], steps: set[str], cached: Cached, tmp_path: Path
):
    assert drawn(cached, tmp_path, **{"max_train_steps": 4} | values) == steps


# The exported file


def test_merge_strength_multiplies_what_is_baked_into_the_checkpoint(
    cached: Cached, tmp_path: Path
):
    adapter = train(cached, tmp_path / "run").summary["output"]
    base = MODEL["pretrained_model_name_or_path"]

    def baked(strength: float) -> torch.Tensor:
        output = tmp_path / f"{strength}.safetensors"
        values = {"input": adapter, "output": output, "merge": base, "merge_strength": strength}
        anima_pipe("export-comfy", **values, save_precision="float").ok()
        (key,) = (key for key in load_file(output) if key.endswith("blocks.0.mlp.layer1.weight"))
        return load_file(output)[key] - load_file(base)[key]

    whole, half = baked(1.0), baked(0.5)
    assert whole.abs().max() > 0
    assert torch.allclose(half, whole / 2, atol=1e-6)


# Model files


def altered(path: Path, copy: Path) -> Path:
    """A copy of a file of weights, each slightly larger."""
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, copy)
    return copy


@pytest.mark.parametrize("spelling", ["pretrained_model_name_or_path", "anima_transformer"])
def test_the_transformer_that_is_named_is_the_one_that_is_trained(
    spelling: str, cached: Cached, plain: Tensors, tmp_path: Path
):
    path = altered(MODEL["pretrained_model_name_or_path"], tmp_path / "other.safetensors")
    given = {"pretrained_model_name_or_path": None, spelling: path}

    assert not torch.equal(tensors_of(train(cached, tmp_path, **given))[UP], plain[UP])


def test_another_vae_and_another_qwen3_have_caches_of_their_own(
    cached: Cached, pictures: Path, tmp_path: Path
):
    qwen = shutil.copytree(MODEL["qwen3"], tmp_path / "qwen")
    altered(qwen / "model.safetensors", qwen / "model.safetensors")
    vae = altered(MODEL["vae"], tmp_path / "vae.safetensors")
    cache = tmp_path / "cache"
    dataset = write_dataset(tmp_path / "dataset.toml", pictures)
    for values in ({}, {"vae": vae}, {"qwen3": qwen}):
        anima_pipe(
            "train", output_dir=tmp_path, dataset_config=dataset, cache_dir=cache, **values
        ).ok()

    assert len(list(cache.glob("latents-*"))) == 2
    assert len(list(cache.glob("text-*"))) == 2
