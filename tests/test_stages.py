"""The stages, one after another and again: what they encode, what they reuse, what they say."""

import shutil
import sys
from pathlib import Path

import pytest
from commands import (
    MODEL,
    anima_pipe,
    demo_pictures,
    files_in,
    options,
    run_apart,
    write_dataset,
)
from safetensors.torch import load_file

from anima_pipe.shards import open_cache

HEAVY = ("torch", "transformers", "accelerate", "webdataset")

SAYS_WHAT_IT_IMPORTED = f"""
import sys
from anima_pipe.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print("HEAVY", [name for name in {HEAVY} if name in sys.modules])
    raise
"""

CACHING = ("cache-latents", "encode-text")


def test_five_stages_lead_from_pictures_to_a_verified_file(tmp_path: Path, dataset: Path):
    data = {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}
    trained, exported = tmp_path / "fox.safetensors", tmp_path / "comfyui" / "fox.safetensors"
    summary = tmp_path / "summary.json"

    fetched = anima_pipe("fetch-tokenizer", summary).ok().summary
    latents = anima_pipe("cache-latents", summary, **data).ok().summary
    texts = anima_pipe("encode-text", summary, **data).ok().summary
    run = anima_pipe("train", summary, output_dir=tmp_path, **data).ok().summary
    export = anima_pipe("export-comfy", summary, input=trained, output=exported).ok().summary

    assert fetched == {"t5_tokenizer_dir": str(MODEL["t5_tokenizer_dir"]), "downloaded": 0}
    counts = {"encoded": 6, "reused": 0, "skipped": 0, "failed": 0, "shards": 1}
    assert latents.items() >= {**counts, "cache_dir": str(tmp_path / "cache")}.items()
    # The empty caption is the seventh: caption dropout may need it.
    assert texts.items() >= {**counts, "encoded": 7, "kept_in_bf16": 0}.items()
    assert min(latents["seconds"], texts["seconds"], run["seconds"]) > 0
    assert run["steps"] == 2
    assert 0 < run["final_loss"] < 10
    assert run["output"] == str(trained)
    assert run["state_dir"] is None
    assert export["output"] == str(exported)
    assert export["keys"] == len(load_file(exported))
    assert export["verified"] is True


@pytest.mark.parametrize("stage", CACHING)
def test_a_caching_stage_run_again_encodes_nothing_and_says_so(
    stage: str, cached: dict[str, object], tmp_path: Path
):
    again = anima_pipe(stage, tmp_path / "summary.json", **cached).ok()

    assert again.summary is not None
    assert again.summary["encoded"] == again.summary["shards"] == 0
    assert again.summary["reused"] >= 6
    assert f"all {again.summary['reused']} already cached, nothing to encode" in again.said


@pytest.mark.parametrize("stage", CACHING)
def test_a_caching_stage_run_again_loads_neither_torch_nor_an_encoder(
    stage: str, cached: dict[str, object]
):
    model = {name: MODEL[name] for name in ("vae",)} if stage == "cache-latents" else {}
    model |= {n: MODEL[n] for n in ("qwen3", "t5_tokenizer_dir")} if stage == "encode-text" else {}

    again = run_apart(
        sys.executable, "-c", SAYS_WHAT_IT_IMPORTED, stage, *options(**model, **cached)
    ).ok()

    assert again.printed.splitlines()[-1] == "HEAVY []"


def test_what_is_new_in_a_dataset_is_encoded_and_nothing_else(tmp_path: Path):
    folder, summary = demo_pictures(tmp_path / "pictures"), tmp_path / "summary.json"
    data = {"dataset_config": write_dataset(tmp_path / "dataset.toml", folder)}
    data["cache_dir"] = tmp_path / "cache"

    def encoded() -> list[tuple[int, int]]:
        ends = [anima_pipe(stage, summary, **data).ok().summary for stage in CACHING]
        return [(end["encoded"], end["reused"]) for end in ends if end is not None]

    assert encoded() == [(6, 0), (7, 0)]

    # Another name and the same content: nothing is new.
    (folder / "01_meadow.png").rename(folder / "renamed.png")
    (folder / "01_meadow.txt").rename(folder / "renamed.txt")
    assert encoded() == [(0, 6), (0, 7)]

    (folder / "renamed.txt").write_text("fox, another caption")
    assert encoded() == [(0, 6), (1, 6)]

    # Repeats change no tensor; mirrored pictures are pictures of their own.
    write_dataset(tmp_path / "dataset.toml", folder, flip_aug=True, num_repeats=3)
    assert encoded() == [(6, 6), (0, 7)]


def test_a_caption_over_the_token_limit_is_kept_whole_counted_and_named(tmp_path: Path):
    folder = demo_pictures(tmp_path / "pictures", every=18)
    (folder / "01_meadow.txt").write_text("fox, meadow, " * 300)
    data = {"dataset_config": write_dataset(tmp_path / "dataset.toml", folder)}

    ended = anima_pipe("encode-text", tmp_path / "s.json", cache_dir=tmp_path / "c", **data).ok()

    assert ended.summary is not None
    assert (ended.summary["over_limit"], ended.summary["failed"]) == (1, 0)
    (first,) = ended.summary["over_limit_first"]
    assert first.startswith("'fox, meadow, fox, meadow, ")
    assert "kept whole, over 512 T5 tokens (1):" in ended.said
    cached = open_cache(tmp_path / "c").text
    longest = max(len(cached[key].t5_ids) for key in cached.keys())  # noqa: SIM118 - no mapping
    assert longest == int(first.split("...: ")[1].split()[0]) > 512

    again = anima_pipe("encode-text", tmp_path / "s.json", cache_dir=tmp_path / "c", **data).ok()
    assert again.summary is not None
    assert (again.summary["encoded"], again.summary["over_limit"]) == (0, 1)
    assert again.summary["over_limit_first"] == [first]
    assert "kept whole, over 512 T5 tokens (1):" in again.said


def test_other_buckets_need_new_latents_of_the_pictures_that_they_change(tmp_path: Path):
    folder, summary = demo_pictures(tmp_path / "pictures"), tmp_path / "summary.json"
    dataset = write_dataset(tmp_path / "dataset.toml", folder)
    data = {"dataset_config": dataset, "cache_dir": tmp_path / "cache"}
    anima_pipe("cache-latents", **data).ok()

    # The one tall picture loses its bucket of 96 x 160.
    dataset.write_text(dataset.read_text().replace("min_bucket_reso = 64", "min_bucket_reso = 128"))
    again = anima_pipe("cache-latents", summary, **data).ok().summary

    assert again is not None
    assert (again["encoded"], again["reused"]) == (1, 5)


def test_training_with_complete_caches_encodes_nothing(cached: dict[str, object], tmp_path: Path):
    run = anima_pipe("train", output_dir=tmp_path, **cached).ok()

    assert "latents   all 6 already cached, nothing to encode" in run.said
    assert "texts     all 7 already cached, nothing to encode" in run.said


def test_training_fills_the_caches_itself_with_what_is_missing(
    cached: dict[str, object], tmp_path: Path
):
    cache = tmp_path / "cache"
    shutil.copytree(str(cached["cache_dir"]), cache)
    shutil.rmtree(next(cache.glob("latents-*")))

    run = anima_pipe("train", output_dir=tmp_path, **{**cached, "cache_dir": cache}).ok()

    assert "latents   6 encoded, 0 already cached" in run.said
    assert "texts     all 7 already cached, nothing to encode" in run.said


@pytest.mark.parametrize(
    ("lacking", "stage"), [("latents", "cache-latents"), ("text", "encode-text")]
)
def test_training_without_auto_cache_names_what_is_missing_and_the_command_that_makes_it(
    lacking: str, stage: str, cached: dict[str, object], tmp_path: Path
):
    cache = tmp_path / "cache"
    shutil.copytree(str(cached["cache_dir"]), cache)
    shutil.rmtree(next(cache.glob(f"{lacking}-*")))

    data = {**cached, "cache_dir": cache, "auto_cache": False}
    run = anima_pipe("train", output_dir=tmp_path / "out", **data)

    assert run.code == 2
    first = "01_meadow.png, 07_autumn_forest.jpg, 13_reading.png, ..."
    assert f"error: 6 of 6 images have no cached {lacking}: {first}" in run.said
    assert f"anima-pipe {stage}" in run.said
    assert files_in(tmp_path / "out") == set()


def test_training_without_auto_cache_needs_no_encoders(cached: dict[str, object], tmp_path: Path):
    encoders = dict.fromkeys(("vae", "qwen3", "t5_tokenizer_dir"))

    run = anima_pipe("train", output_dir=tmp_path, auto_cache=False, **encoders, **cached)

    assert run.code == 0, run.said
    assert (tmp_path / "fox.safetensors").exists()
