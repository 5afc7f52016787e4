"""A text adapter in a file of its own, beside a transformer that may lack it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from commands import Ended, anima_pipe, tensors_of
from golden_model import golden_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.errors import CheckpointError
from anima_pipe.model import load_transformer, read_transformer_config
from anima_pipe.runtime import LOGGER

Cached = dict[str, object]
Tensors = dict[str, torch.Tensor]
PART = "llm_adapter."


def parted(weights: Tensors) -> tuple[Tensors, Tensors]:
    """The weights of a transformer without its text adapter, and those of the text adapter."""
    own = {name: weight for name, weight in weights.items() if PART not in name}
    rest = {n.partition(PART)[2]: weight for n, weight in weights.items() if PART in n}
    return own, rest


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options that name the demo's transformer in two files. Not to be changed."""
    folder = tmp_path_factory.mktemp("split")
    own, rest = parted(load_file(demo.DEMO_TRANSFORMER))
    save_file(own, folder / "dit.safetensors")
    save_file(rest, folder / "text.safetensors")
    return {
        "pretrained_model_name_or_path": folder / "dit.safetensors",
        "llm_adapter_path": folder / "text.safetensors",
    }


@pytest.fixture(scope="module")
def another(split: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another text adapter of the same sizes."""
    path = tmp_path_factory.mktemp("another") / "text.safetensors"
    weights = load_file(str(split["llm_adapter_path"]))
    save_file({name: weight * 1.25 for name, weight in weights.items()}, path)
    return path


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    return anima_pipe("train", folder / "summary.json", output_dir=folder, **cached, **values)


def other_command(*arguments: object) -> Ended:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    LOGGER.handlers.clear()
    return Ended(code=result.exit_code, said=result.stderr, printed=result.stdout, summary=None)


def metadata_of(path: object) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


def test_a_transformer_in_two_files_trains_to_the_bits_of_the_whole(
    cached: Cached, split: dict[str, object], tmp_path: Path
):
    whole = tensors_of(train(cached, tmp_path / "whole").ok())
    ended = train(cached, tmp_path / "split", **split).ok()
    two = tensors_of(ended)

    assert two.keys() == whole.keys()
    assert all(torch.equal(two[key], whole[key]) for key in whole)
    assert ended.summary is not None
    assert metadata_of(ended.summary["output"])["ss_llm_adapter_name"] == "text.safetensors"


def test_another_text_adapter_is_taken_instead_of_the_transformers_own(
    cached: Cached, split: dict[str, object], another: Path, tmp_path: Path
):
    whole = tensors_of(train(cached, tmp_path / "whole").ok())
    over_whole = tensors_of(train(cached, tmp_path / "over", llm_adapter_path=another).ok())
    in_two = tensors_of(
        train(cached, tmp_path / "two", **split | {"llm_adapter_path": another}).ok()
    )

    assert any(not torch.equal(over_whole[key], whole[key]) for key in whole)
    assert all(torch.equal(over_whole[key], in_two[key]) for key in whole)


def test_a_state_is_resumed_with_its_text_adapter_and_no_other(
    cached: Cached, split: dict[str, object], another: Path, tmp_path: Path
):
    saving = {**split, "save_state": True, "save_every_n_steps": 1}
    straight = tensors_of(train(cached, tmp_path / "straight", **saving).ok())
    train(cached, tmp_path, max_train_steps=1, **saving).ok()

    refused = train(cached, tmp_path, resume="latest", **saving | {"llm_adapter_path": another})
    assert refused.code == 2
    assert "--resume_allow llm_adapter_path" in refused.said

    resumed = tensors_of(train(cached, tmp_path, resume="latest", **saving).ok())
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (demo.DEMO_TRANSFORMER, "it looks like the Anima or Cosmos transformer"),
        (demo.DEMO_VAE, "it looks like the VAE of Wan 2.1 or Qwen-Image"),
        (demo.DEMO_QWEN / "model.safetensors", "it looks like a Qwen3 language model"),
    ],
)
def test_a_file_of_another_kind_ends_the_run_at_once(
    given: Path, what: str, cached: Cached, tmp_path: Path
):
    ended = train(cached, tmp_path, llm_adapter_path=given)

    assert ended.code != 0
    (problem,) = re.findall(
        r"^.*is not the file of Anima's text adapter alone: (.*)$", ended.said, re.MULTILINE
    )
    assert problem == what
    assert "Traceback" not in ended.said


def test_a_transformer_without_text_adapter_asks_for_its_file(
    cached: Cached, split: dict[str, object], tmp_path: Path
):
    ended = train(cached, tmp_path, **split | {"llm_adapter_path": None})

    assert ended.code != 0
    assert "has no text adapter" in ended.said
    assert "--llm_adapter_path" in ended.said


def test_a_text_adapter_given_as_the_transformer_is_told(
    cached: Cached, split: dict[str, object], tmp_path: Path
):
    given = {"pretrained_model_name_or_path": split["llm_adapter_path"]}

    ended = train(cached, tmp_path, **given)

    assert ended.code != 0
    assert "is not an Anima transformer: it looks like Anima's text adapter alone" in ended.said
    assert "Give it as --llm_adapter_path" in ended.said


# Loading


@pytest.mark.parametrize("stem", ["", "net.", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("part", ["", PART])
def test_names_are_taken_with_and_without_their_prefixes(stem: str, part: str, tmp_path: Path):
    weights = golden_weights("a")
    own, rest = parted(weights)
    prefix = stem + part if part else ""
    save_file({f"{stem}{name}": weight for name, weight in own.items()}, tmp_path / "dit")
    save_file({f"{prefix}{name}": weight for name, weight in rest.items()}, tmp_path / "text")

    loaded = load_transformer(tmp_path / "dit", llm_adapter=tmp_path / "text").state_dict()

    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def changed(**changes: torch.Tensor | None) -> Tensors:
    """The golden text adapter with tensors replaced, added or (None) left out; _ is for a dot."""
    _, rest = parted(golden_weights("a"))
    merged = {**rest, **{name.replace("__", "."): weight for name, weight in changes.items()}}
    return {name: weight.contiguous() for name, weight in merged.items() if weight is not None}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"norm__weight": None}, r"text, as .* lacks llm_adapter\.norm\.weight"),
        ({"embed__weight": None}, r"text lacks llm_adapter\.embed\.weight"),
        ({"other__weight": torch.zeros(2)}, r"text, as .* unexpected llm_adapter\.other\.weight"),
        ({"norm__weight": torch.zeros(3)}, r"llm_adapter\.norm\.weight as \[3\] instead of"),
        ({"embed__weight": torch.zeros(3)}, r"text is not .*embed\.weight has shape \[3\]"),
        ({"norm__weight": torch.zeros(3, dtype=torch.int8)}, "text is quantised"),
    ],
)
def test_a_text_adapter_that_is_not_whole_is_named(
    changes: dict[str, torch.Tensor | None], complaint: str, tmp_path: Path
):
    own, _ = parted(golden_weights("a"))
    save_file(own, tmp_path / "dit")
    save_file(changed(**changes), tmp_path / "text")

    for read in (load_transformer, read_transformer_config):
        with pytest.raises(CheckpointError, match=complaint):
            read(tmp_path / "dit", llm_adapter=tmp_path / "text")


def test_a_text_adapter_of_another_width_fits_no_transformer(tmp_path: Path):
    save_file(parted(golden_weights("a"))[0], tmp_path / "dit")
    save_file(parted(load_file(demo.DEMO_TRANSFORMER))[1], tmp_path / "text")

    with pytest.raises(CheckpointError, match="gives a text condition of width"):
        read_transformer_config(tmp_path / "dit", tmp_path / "text")


# Other commands


def test_pictures_are_drawn_with_it(split: dict[str, object], another: Path, tmp_path: Path):
    def picture(name: str, **values: object) -> bytes:
        files = {**{n: p for n, p in demo.options().items() if n in TOKENS}, **values}
        arguments = [item for key, value in files.items() for item in (f"--{key}", value)]
        prompt = "a fox --w 64 --h 64 --s 1 --l 1"
        ended = other_command(
            "sample", *arguments, "--device", "cpu", "--prompt", prompt, "--output_dir", name
        )
        ended.ok()
        from PIL import Image

        return Image.open(Path(name) / "sample_000.png").tobytes()

    whole = {"pretrained_model_name_or_path": demo.DEMO_TRANSFORMER}
    base = picture(str(tmp_path / "whole"), **whole)

    assert picture(str(tmp_path / "split"), **split) == base
    assert picture(str(tmp_path / "other"), **whole, llm_adapter_path=another) != base


TOKENS = ("vae", "qwen3", "t5_tokenizer_dir")


def test_doctor_takes_the_two_files_for_a_model(split: dict[str, object], tmp_path: Path):
    def told(**files: object) -> Ended:
        path = tmp_path / "train_args.toml"
        path.write_text("".join(f"{name} = {json.dumps(str(p))}\n" for name, p in files.items()))
        return other_command("doctor", "--device", "cpu", "--config_file", path)

    assert "Anima's text adapter alone" in told(**split).ok().printed
    alone = told(pretrained_model_name_or_path=split["pretrained_model_name_or_path"])
    assert alone.code == 1
    assert "is not the transformer" in alone.printed
    swapped = told(**split | {"llm_adapter_path": demo.DEMO_VAE})
    assert swapped.code == 1
    assert "is not the text adapter" in swapped.printed


def test_config_check_misses_the_file(tmp_path: Path):
    path = tmp_path / "train_args.toml"
    path.write_text('llm_adapter_path = "nowhere.safetensors"\n')

    ended = other_command("config", "check", path)

    assert "llm_adapter_path: there is no" in ended.said + ended.printed


def test_baking_says_whose_text_adapter_stays(
    cached: Cached, split: dict[str, object], tmp_path: Path
):
    trained = train(cached, tmp_path / "run", **split).ok().summary
    assert trained is not None
    given = {"input": trained["output"], "output": tmp_path / "baked.safetensors"}

    baked = anima_pipe("export-comfy", **given, merge=demo.DEMO_TRANSFORMER).ok()
    assert "trained with the text adapter of text.safetensors" in baked.said
    (tmp_path / "baked.safetensors").unlink()

    refused = anima_pipe("export-comfy", **given, merge=split["pretrained_model_name_or_path"])
    assert refused.code != 0
    assert "does not hold one" in refused.said
    assert not (tmp_path / "baked.safetensors").exists()
