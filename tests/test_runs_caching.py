"""The stages before training as calls of the library, on the demo's pictures and tiny model."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from commands import BUCKETS, demo_pictures, run_apart
from fake_hubs import Hubs
from remote_caches import CACHE, in_bucket
from s3_server import FaultyServer

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_VAE
from anima_pipe.errors import ConfigError, DataError
from anima_pipe.hub.home import recorded_models
from anima_pipe.kohya.caching import cache_latents_settings, encode_text_settings
from anima_pipe.kohya.model_files import tokenizer_settings
from anima_pipe.kohya.resolve import resolve
from anima_pipe.records import PreviewPrompt
from anima_pipe.runs import (
    BucketRules,
    CacheLatentsSettings,
    CacheSettings,
    DatasetConfig,
    EncodeTextSettings,
    FetchTokenizerSettings,
    LatentSettings,
    SubsetConfig,
    TextSettings,
    cache_latents,
    encode_text,
    fetch_tokenizer,
    open_place,
)

CACHES_TWICE = """
import json, sys
from dataclasses import asdict
from pathlib import Path

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_VAE
from anima_pipe.runs import (
    BucketRules,
    CacheLatentsSettings,
    CacheSettings,
    DatasetConfig,
    EncodeTextSettings,
    LatentSettings,
    SubsetConfig,
    TextSettings,
    cache_latents,
    encode_text,
)

pictures, folder = map(Path, sys.argv[1:])
buckets = BucketRules(resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256)
datasets = (DatasetConfig(subsets=(SubsetConfig(image_dir=pictures),), buckets=buckets),)
cache = CacheSettings(folder=folder, device="cpu")
latents = LatentSettings(cache=cache, vae=DEMO_VAE, workers=0)
text = TextSettings(cache=cache, qwen=DEMO_QWEN, t5_tokenizer_dir=DEMO_T5_TOKENIZER)
summaries = [
    run(settings)
    for _ in range(2)
    for run, settings in (
        (cache_latents, CacheLatentsSettings(datasets=datasets, latents=latents)),
        (encode_text, EncodeTextSettings(datasets=datasets, text=text)),
    )
]
print(json.dumps({"summaries": list(map(asdict, summaries)), "modules": sorted(sys.modules)}))
"""
COMMAND_LINE = ("click", "stages", "anima_pipe.cli", "anima_pipe.kohya")
HEAVY = ("torch", "accelerate", "transformers")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which nothing is noted."""
    monkeypatch.setenv("ANIMA_PIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def settings_of(pictures: Path, folder: Path) -> tuple[CacheLatentsSettings, EncodeTextSettings]:
    """Ask for the least that can be asked for, on the processor."""
    buckets = BucketRules(resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256)
    datasets = (DatasetConfig(subsets=(SubsetConfig(image_dir=pictures),), buckets=buckets),)
    cache = CacheSettings(folder=folder, device="cpu")
    latents = LatentSettings(cache=cache, vae=DEMO_VAE, workers=0)
    text = TextSettings(cache=cache, qwen=DEMO_QWEN, t5_tokenizer_dir=DEMO_T5_TOKENIZER)
    return (
        CacheLatentsSettings(datasets=datasets, latents=latents),
        EncodeTextSettings(datasets=datasets, text=text),
    )


def cached_apart(pictures: Path, folder: Path) -> dict[str, list[object]]:
    """Cache latents and texts twice in a program of its own; return what it tells."""
    return json.loads(run_apart(sys.executable, "-c", CACHES_TWICE, pictures, folder).ok().printed)


def imported(modules: list[object], names: tuple[str, ...]) -> list[object]:
    return [m for m in modules if any(m == name or str(m).startswith(f"{name}.") for name in names)]


def test_caches_are_filled_by_calls_that_know_no_command_line(
    pictures: Path, tmp_path: Path
) -> None:
    told = cached_apart(pictures, tmp_path / "cache")

    assert imported(told["modules"], COMMAND_LINE) == []
    cache_dir, nothing = str(tmp_path / "cache"), {"skipped": 0, "failed": 0, "problems": 0}
    latents, texts, latents_again, texts_again = told["summaries"]
    assert isinstance(latents, dict)
    assert isinstance(texts, dict)
    # Six pictures; their six captions, and the empty one that caption dropout puts in.
    assert latents.items() >= (nothing | {"encoded": 6, "reused": 0, "shards": 1}).items()
    assert texts.items() >= (nothing | {"encoded": 7, "reused": 0, "shards": 1}).items()
    assert (latents["cache_dir"], texts["cache_dir"]) == (cache_dir, cache_dir)
    seconds = {"seconds": 0}
    assert latents_again | seconds == latents | seconds | {"encoded": 0, "reused": 6, "shards": 0}
    assert texts_again | seconds == texts | seconds | {"encoded": 0, "reused": 7, "shards": 0}


def test_a_call_with_nothing_to_do_loads_no_torch(pictures: Path, tmp_path: Path) -> None:
    cached_apart(pictures, tmp_path / "cache")

    told = cached_apart(pictures, tmp_path / "cache")

    assert imported(told["modules"], HEAVY) == []


def test_a_call_caches_what_the_command_with_these_options_does(
    cached: dict[str, object], pictures: Path
) -> None:
    rules = {name: value for name, value in BUCKETS.items() if name != "batch_size"}
    buckets = BucketRules(**{**rules, "resolution": (128, 128)})
    dataset = DatasetConfig(subsets=(SubsetConfig(image_dir=pictures),), buckets=buckets)
    latents, text = settings_of(pictures, Path(str(cached["cache_dir"])))

    assert cache_latents(replace(latents, datasets=(dataset,))).encoded == 0
    assert encode_text(replace(text, datasets=(dataset,))).encoded == 0


def test_what_is_not_said_in_settings_is_as_it_is_in_options(
    dataset: Path, pictures: Path, tmp_path: Path, own_home: Path
) -> None:
    names = {"dataset_config": dataset, "cache_dir": tmp_path}
    of_latents = cache_latents_settings(resolve("cache-latents", names | {"vae": DEMO_VAE}))
    text = {"qwen3": DEMO_QWEN, "t5_tokenizer_dir": DEMO_T5_TOKENIZER}
    of_text = encode_text_settings(resolve("encode-text", names | text))

    cache = CacheSettings(folder=tmp_path)
    assert of_latents == CacheLatentsSettings(
        datasets=of_latents.datasets, latents=LatentSettings(cache=cache, vae=DEMO_VAE)
    )
    assert of_text == EncodeTextSettings(
        datasets=of_text.datasets,
        text=TextSettings(cache=cache, qwen=DEMO_QWEN, t5_tokenizer_dir=DEMO_T5_TOKENIZER),
        # Whoever types a command is not asked first.
        tokenizer_sources=FetchTokenizerSettings().sources,
    )
    (rules,) = of_latents.datasets
    assert rules.subsets == (SubsetConfig(image_dir=pictures),)
    of_tokenizer = tokenizer_settings(resolve("fetch-tokenizer", {}))
    assert of_tokenizer == FetchTokenizerSettings()
    assert of_tokenizer.folder == own_home / "models" / "t5_tokenizer"


def test_the_prompts_of_previews_are_encoded_with_the_captions(
    pictures: Path, tmp_path: Path
) -> None:
    _, text = settings_of(pictures, tmp_path / "cache")
    prompts = (PreviewPrompt(prompt="a fox", negative="blurry"),)

    assert encode_text(replace(text, prompts=prompts)).encoded == 7 + 2


def test_caches_at_an_address_are_filled_by_a_call(
    s3: FaultyServer, pictures: Path, tmp_path: Path
) -> None:
    latents, _ = settings_of(pictures, open_place(CACHE, tmp_path / "mirror"))

    summary = cache_latents(latents)

    assert (summary.encoded, summary.cache_dir) == (6, CACHE)
    assert len([name for name in in_bucket(s3) if name.endswith(".tar")]) == 1


def test_under_strict_a_damaged_picture_is_an_error_once_the_others_are_encoded(
    tmp_path: Path,
) -> None:
    pictures = demo_pictures(tmp_path / "pictures")
    (pictures / "damaged.png").write_bytes(b"no picture")
    latents, _ = settings_of(pictures, tmp_path / "cache")

    with pytest.raises(DataError) as raised:
        cache_latents(replace(latents, strict=True))

    assert raised.value.problem == "1 pictures or captions could not be used"
    assert "leave out --strict" in raised.value.remedy
    again = cache_latents(latents)
    assert (again.reused, again.skipped) == (6, 1)


def test_an_error_tells_its_problem_apart_from_its_remedy(pictures: Path, tmp_path: Path) -> None:
    latents, text = settings_of(tmp_path / "nowhere", tmp_path / "cache")

    for run, settings in ((cache_latents, latents), (encode_text, text)):
        with pytest.raises(DataError) as raised:
            run(settings)
        assert str(tmp_path / "nowhere") in raised.value.problem
        assert raised.value.remedy
        assert raised.value.remedy not in raised.value.problem


def test_without_sources_a_missing_tokenizer_is_an_error_that_says_where_it_is_to_be(
    pictures: Path, tmp_path: Path
) -> None:
    _, settings = settings_of(pictures, tmp_path / "cache")
    text = replace(settings.text, t5_tokenizer_dir=tmp_path / "t5")

    with pytest.raises(ConfigError) as raised:
        encode_text(replace(settings, text=text))
    assert raised.value.problem == f"T5 tokenizer directory not found: {tmp_path / 't5'}"

    with pytest.raises(ConfigError, match="T5 tokenizer directory not found"):
        fetch_tokenizer(FetchTokenizerSettings(folder=tmp_path / "t5", sources=()))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("crop_variants", 0, "crop_variants is 0"),
        ("caption_variants", 0, "caption_variants is 0"),
        ("batch_size", 0, "batch_size is 0"),
        ("workers", -1, "max_data_loader_n_workers is -1"),
        ("dtype", "float16", "cache_dtype is 'float16'"),
    ],
)
def test_settings_that_nothing_can_be_made_of_are_refused_when_they_are_written(
    field: str, value: object, problem: str, tmp_path: Path
) -> None:
    latents, text = settings_of(tmp_path, tmp_path)
    parts = [latents, text, latents.latents, text.text, latents.latents.cache]
    having = [part for part in parts if field in {each.name for each in fields(part)}]

    assert having
    for part in having:
        with pytest.raises(ConfigError) as raised:
            replace(part, **{field: value})
        assert problem in raised.value.problem
        assert raised.value.remedy


def test_the_tokenizer_is_fetched_by_a_call_as_by_its_command(hubs: Hubs, own_home: Path) -> None:
    folder = own_home / "models" / "t5_tokenizer"

    fetched = fetch_tokenizer()
    again = fetch_tokenizer()

    assert (fetched.downloaded, again.downloaded) == (3, 0)
    assert fetched.t5_tokenizer_dir == str(folder)
    # Whoever then starts a command need not name it.
    assert recorded_models() == {"t5_tokenizer_dir": folder}
