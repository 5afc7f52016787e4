"""What a training run does and leaves behind, told by its options and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import MODEL, Ended, anima_pipe, files_in, options, tensors_of
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from anima_pipe.cli.main import main
from anima_pipe.drawing.sheets import ROW_LABEL

Cached = dict[str, object]

PROMPTS = """\
hoshimaru, fox, smile --w 64 --h 96 --d 3 --s 2 --l 1
# a comment, and a prompt in another language, with a negative prompt and guidance
狐、雪 --n blurry --w 64 --h 64 --s 2 --l 4
"""


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **cached, **values).ok()


@pytest.fixture(scope="module")
def plain(cached: Cached, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of two plain steps, that others are compared with."""
    folder = tmp_path_factory.mktemp("plain")
    train(cached, folder)
    return folder / "fox.safetensors"


def test_the_same_seed_gives_the_same_file_to_the_bit(cached: Cached, plain: Path, tmp_path: Path):
    train(cached, tmp_path)

    assert (tmp_path / "fox.safetensors").read_bytes() == plain.read_bytes()


def test_another_seed_gives_another_adapter(cached: Cached, plain: Path, tmp_path: Path):
    other, expected = tensors_of(train(cached, tmp_path, seed=2)), load_file(plain)

    assert other.keys() == expected.keys()
    name = "diffusion_model.blocks.0.mlp.layer1.lora_B.weight"
    assert not torch.equal(other[name], expected[name])


@pytest.mark.parametrize(("precision", "difference"), [("no", 0.0), ("bf16", 0.02), ("fp16", 0.02)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_in_fp32_is_trained_on_a_base_of_any_precision(
    precision: str,
    difference: float,
    *,
    checkpointing: bool,
    cached: Cached,
    plain: Path,
    tmp_path: Path,
):
    run = train(cached, tmp_path, mixed_precision=precision, gradient_checkpointing=checkpointing)

    trained, expected = tensors_of(run), load_file(plain)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    # Every B starts at zero, so its sign after two steps says whether the gradients agree.
    changes = {name for name in expected if "lora_B" in name}
    agreeing = [
        (trained[name].sign() == expected[name].sign()).float().mean().item() for name in changes
    ]
    assert sum(agreeing) / len(agreeing) > (0.9 if difference else 0.999)


def test_saves_are_named_as_kohya_names_them(cached: Cached, tmp_path: Path):
    out = tmp_path / "out"

    # Six pictures are four batches of two: there are two buckets, and odd ones are left over.
    values = {"max_train_steps": 6, "save_every_n_steps": 3, "save_every_n_epochs": 1}
    anima_pipe("train", output_dir=out, **values, **cached).ok()

    assert files_in(out) == {
        "fox-step00000003.safetensors",
        "fox-step00000006.safetensors",
        "fox-000001.safetensors",
        "fox.safetensors",
    }


def test_epochs_and_accumulation_say_how_many_steps_there_are(cached: Cached, tmp_path: Path):
    run = train(cached, tmp_path, max_train_epochs=3, gradient_accumulation_steps=2)

    assert run.summary is not None
    assert run.summary["steps"] == 6
    assert "2 batches a step" in run.said
    with safe_open(tmp_path / "fox.safetensors", framework="pt") as file:
        assert file.metadata().items() >= {"ss_steps": "6", "ss_epoch": "3"}.items()


def test_the_loss_goes_down(cached: Cached, tmp_path: Path):
    # One noise level and large steps, so that 24 of them show more than the draw of the noise.
    values = {"max_train_steps": 24, "learning_rate": 1e-2, "sigmoid_scale": 0.01}
    run = train(cached, tmp_path, **values)

    assert run.summary is not None
    assert run.summary["final_loss"] < 0.9 * run.summary["first_loss"]


def test_training_goes_on_from_the_weights_of_a_file(cached: Cached, plain: Path, tmp_path: Path):
    run = train(cached, tmp_path, network_weights=plain, learning_rate=1e-9, max_train_steps=1)

    trained, start = tensors_of(run), load_file(plain)
    assert trained.keys() == start.keys()
    assert all(torch.allclose(trained[name], start[name], atol=1e-7) for name in start)


@pytest.mark.parametrize(
    ("module", "arguments", "keys"),
    [
        ("networks.lora_anima", [], {"lora_A.weight", "lora_B.weight"}),
        ("networks.lokr_anima", ["lokr_factor=4"], {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    ],
)
@pytest.mark.parametrize("norms", [True, False])
def test_adapters_of_either_kind_train_with_norms_and_without(
    module: str,
    arguments: list[str],
    keys: set[str],
    *,
    norms: bool,
    cached: Cached,
    tmp_path: Path,
):
    run = train(
        cached, tmp_path, network_module=module, network_args=arguments or None, train_norm=norms
    )
    exported = anima_pipe(
        "export-comfy",
        tmp_path / "export.json",
        input=tmp_path / "fox.safetensors",
        output=tmp_path / "comfyui.safetensors",
    ).ok()

    found = {name for name in tensors_of(run) if name.startswith("diffusion_model.blocks.0.")}
    prefix = "diffusion_model.blocks.0.mlp.layer1."
    assert {n.removeprefix(prefix) for n in found if n.startswith(prefix)} == keys | {"alpha"}
    assert any(name.endswith("w_norm") for name in found) == norms
    assert exported.summary is not None
    assert exported.summary["verified"] is True


def test_saved_tensors_take_the_precision_asked_for(cached: Cached, tmp_path: Path):
    tensors = tensors_of(train(cached, tmp_path, save_precision="bf16"))

    trained = {tensor.dtype for name, tensor in tensors.items() if not name.endswith("alpha")}
    assert trained == {torch.bfloat16}


# Previews and logs


def picture_in(path: Path | str) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


@pytest.fixture(scope="module")
def shown(cached: Cached, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run with everything that can be shown: its folder, and what it came to."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "prompts.txt").write_text(PROMPTS)
    values = {"sample_at_first": True, "sample_every_n_steps": 1, "log_with": "tensorboard"}
    run = train(
        cached,
        folder / "out",
        sample_prompts=folder / "prompts.txt",
        logging_dir=folder / "logs",
        **values,
    )
    return folder, run


def test_looking_on_does_not_change_what_is_trained(shown: tuple[Path, Ended], plain: Path):
    folder, _ = shown

    theirs, ours = load_file(plain), load_file(folder / "out" / "fox.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_previews_are_drawn_before_during_and_after_at_the_sizes_asked_for(
    shown: tuple[Path, Ended],
):
    samples = shown[0] / "out" / "sample"

    pictures = {path.name: picture_in(path) for path in samples.glob("fox_*.png")}
    assert {name: picture.size for name, picture in pictures.items()} == {
        f"fox_{step:06}_{number:02}.png": size
        for step in (0, 1, 2)
        for number, size in enumerate([(64, 96), (64, 64)])
    }
    before, after = (pictures[f"fox_{step:06}_00.png"].tobytes() for step in (0, 2))
    assert before != after


def test_a_preview_carries_its_prompt(shown: tuple[Path, Ended]):
    text = picture_in(shown[0] / "out" / "sample" / "fox_000002_01.png").info["parameters"]

    prompt, negative, settings = text.splitlines()
    assert prompt == "狐、雪"
    assert negative == "Negative prompt: blurry"
    assert settings.startswith("Steps: 2, Sampler: Euler, Schedule type: Simple, CFG scale: 4, ")
    assert "Seed: 0, Size: 64x64, Model: transformer, " in settings


def test_the_contact_sheet_shows_every_prompt_at_every_time(shown: tuple[Path, Ended]):
    folder, run = shown

    assert run.summary is not None
    assert run.summary["contact_sheet"] == str(folder / "out" / "sample" / "fox.png")
    width, height = picture_in(run.summary["contact_sheet"]).size
    assert width >= 3 * 64
    assert height >= 96 + 64


def test_the_contact_sheet_of_a_resumed_run_is_that_of_one_in_one_go(
    shown: tuple[Path, Ended], cached: Cached, tmp_path: Path
):
    prompts = shown[0] / "prompts.txt"
    drawing = {"sample_prompts": prompts, "sample_at_first": True, "sample_every_n_steps": 1}
    train(cached, tmp_path, **drawing, max_train_steps=1, save_state=True)
    train(cached, tmp_path, **drawing, resume="latest")

    sheet, whole = (folder / "sample" / "fox.png" for folder in (tmp_path, shown[0] / "out"))
    assert sheet.read_bytes() == whole.read_bytes()


def test_pictures_of_other_prompts_are_not_on_the_sheet_of_a_resumed_run(
    cached: Cached, tmp_path: Path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fox --w 64 --h 64 --s 1 --l 1\n")
    drawing = {"sample_prompts": prompts, "sample_every_n_steps": 1}
    train(cached, tmp_path, **drawing, max_train_steps=1, save_state=True)
    prompts.write_text("wolf --w 64 --h 64 --s 1 --l 1\n")
    train(cached, tmp_path, **drawing, resume="latest")

    one = picture_in(tmp_path / "sample" / "fox_000002_00.png")
    sheet = picture_in(tmp_path / "sample" / "fox.png")
    assert sheet.width < ROW_LABEL + 3 * one.width


def test_a_picture_drawn_afterwards_is_the_runs_last_preview(
    shown: tuple[Path, Ended], tmp_path: Path
):
    folder = shown[0]
    given = {
        "adapter": folder / "out" / "fox.safetensors",
        "sample_prompts": folder / "prompts.txt",
        "device": "cpu",
        "output_dir": tmp_path,
    }
    ended = CliRunner().invoke(main, ["sample", *options(**MODEL, **given)])
    assert ended.exit_code == 0, ended.stderr

    for number in range(2):
        theirs = picture_in(folder / "out" / "sample" / f"fox_000002_{number:02}.png")
        ours = picture_in(tmp_path / f"sample_{number:03}.png")
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
        # Training took the texts from the cache, which keeps them in half precision.
        assert difference.max() <= 8


def test_tensorboard_shows_loss_and_rate_of_every_step(shown: tuple[Path, Ended]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = (shown[0] / "logs").iterdir()
    events = EventAccumulator(str(log))
    events.Reload()

    tags = set(events.Tags()["scalars"])
    assert tags >= {"loss/current", "loss/average", "grad_norm", "epoch"}
    assert any(tag.startswith("lr/") for tag in tags)
    losses = events.Scalars("loss/current")
    assert [event.step for event in losses] == [1, 2]
    assert shown[1].summary is not None
    assert losses[0].value == pytest.approx(shown[1].summary["first_loss"])


def test_a_run_without_prompts_that_is_told_when_to_draw_is_refused(cached: Cached, tmp_path: Path):
    run = anima_pipe("train", output_dir=tmp_path, sample_every_n_steps=1, **cached)

    assert run.code == 2
    assert "sample_prompts" in run.said


def test_a_run_says_what_it_will_do_before_it_does_it(shown: tuple[Path, Ended]):
    said = shown[1].said

    plan = said[: said.index("\nstep ")]
    assert "images      6, 6 visits per epoch" in plan
    assert "batches     4 per epoch" in plan
    assert ", 4 per epoch: " in plan
    assert "buckets     128x128 (5), 96x160 (1)" in plan
    assert f"tokenizer   {MODEL['t5_tokenizer_dir']}" in plan
    assert "seed 1" in plan
    assert "blocks.*.self_attn" in plan
