"""anima-pipe cache: what it says of a cache, what it finds wrong, and what it removes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from commands import MODEL, anima_pipe, demo_pictures, files_in, options, write_dataset

from anima_pipe.cli.main import main
from anima_pipe.runtime import LOGGER
from anima_pipe.shards import LatentWriter, open_cache
from anima_pipe.shards.sidecar import index_path


def cache(*words: object) -> Result:
    """Run `anima-pipe cache`."""
    result = CliRunner().invoke(main, ["cache", *map(str, words)])
    LOGGER.handlers.clear()
    return result


@pytest.fixture(scope="module")
def complete(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset's caches; those that other tests train from hold their prompts as well."""
    folder = tmp_path_factory.mktemp("complete")
    for stage in ("cache-latents", "encode-text"):
        anima_pipe(stage, dataset_config=dataset, cache_dir=folder).ok()
    return folder


@pytest.fixture
def folder(complete: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(complete, tmp_path / "cache"))


@pytest.fixture
def some(pictures: Path, tmp_path: Path) -> Path:
    """dataset.toml of half of the pictures that the caches are for."""
    half = tmp_path / "half"
    half.mkdir()
    for path in sorted(pictures.iterdir())[: len(list(pictures.iterdir())) // 2]:
        shutil.copy(path, half)
    return write_dataset(tmp_path / "half.toml", half)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_cache(folder)
    latents = {key: opened.latents[key].clone() for key in opened.latents}
    return latents | {key: opened.text[key].qwen_hidden.clone() for key in opened.text}


def test_stats_count_what_is_there(folder):
    opened = open_cache(folder)
    shown = cache("stats", "--cache_dir", folder, "--json")
    latents, text = json.loads(shown.stdout)
    assert (latents["kind"], latents["samples"]) == ("latents", len(opened.latents))
    assert (text["kind"], text["samples"]) == ("text", len(opened.text))
    assert sum(latents["buckets"].values()) == len(opened.latents)
    sizes = {
        f"{8 * shape[2]}x{8 * shape[1]}" for shape in map(opened.latents.shape, opened.latents)
    }
    assert set(latents["buckets"]) == sizes
    assert text["tokens"] == sorted(len(opened.text[key].qwen_hidden) for key in opened.text)
    on_disk = sum(path.stat().st_size for path in folder.glob("*-*/*"))
    assert latents["total_bytes"] + text["total_bytes"] == on_disk
    said = cache("stats", "--cache_dir", folder).stdout
    assert f"{len(opened.latents)} samples in 1 shard" in said


def test_a_sound_cache_verifies(folder):
    result = cache("verify", "--cache_dir", folder)
    assert result.exit_code == 0
    assert result.stdout.count("all whole") == 2


def test_verify_names_what_is_damaged_until_it_is_encoded_anew(folder, cached):
    store = open_cache(folder).latents
    key = next(iter(store))
    (tar,) = folder.glob("latents-*/*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(f"{key}.safetensors".encode()) + 512 + 300] ^= 1
    tar.write_bytes(content)
    for _ in range(2):
        result = cache("verify", "--cache_dir", folder)
        assert result.exit_code == 1
        assert key in result.stdout
    anima_pipe("cache-latents", **(cached | {"cache_dir": folder})).ok()
    assert cache("verify", "--cache_dir", folder).exit_code == 0


def test_samples_encoded_again_are_what_is_cached(folder, cached):
    encoders = [f"--{name}={MODEL[name]}" for name in ("vae", "qwen3", "t5_tokenizer_dir")]
    place = ("--cache_dir", folder, "--dataset_config", cached["dataset_config"])
    result = cache("verify", *place, *encoders, "--reencode", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("2 encoded again, 0 differ; values by 0 at most") == 2


def test_a_sample_that_its_encoder_never_made_is_found_by_encoding_again(folder, cached):
    (old,) = folder.glob("latents-*")
    identity = json.loads((old / "cache.json").read_text())
    latents = {key: value for key, value in tensors_in(folder).items() if value.ndim == 3}
    forged = next(iter(latents))
    shutil.rmtree(old)
    with LatentWriter(folder, identity["fingerprint"], identity["dtype"], "forger") as writer:
        for key, latent in latents.items():
            writer.add(key, latent + 0.5 * (key == forged), {})
    assert cache("verify", "--cache_dir", folder).exit_code == 0

    place = ("--cache_dir", folder, "--dataset_config", cached["dataset_config"])
    encoder = ("--vae", MODEL["vae"], "--device", "cpu")
    result = cache("verify", *place, *encoder, "--reencode", len(latents))
    assert result.exit_code == 1
    assert f"sample {forged}: its encoder makes something else" in result.stdout
    assert f"{len(latents)} encoded again, 1 differ" in result.stdout


def test_encoding_again_without_an_encoder_is_an_error(folder):
    result = cache("verify", "--cache_dir", folder, "--reencode", 1)
    assert result.exit_code == 2
    assert "--vae" in result.stderr


def test_gc_changes_nothing_unless_told_to_delete(folder, some):
    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    result = cache("gc", some, "--cache_dir", folder)
    assert result.exit_code == 0, result.output
    assert "--delete does it" in result.stdout
    after = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after.keys() - before.keys()} <= {"scan"}


def test_gc_keeps_what_the_datasets_need_as_it_is_and_removes_the_rest(folder, some, tmp_path):
    before = tensors_in(folder)
    needed = {"dataset_config": some, "cache_dir": tmp_path / "fresh"}
    anima_pipe("cache-latents", **needed).ok()
    anima_pipe("encode-text", **needed).ok()
    expected = tensors_in(tmp_path / "fresh").keys()
    assert 0 < len(expected) < len(before)

    result = cache("gc", some, "--cache_dir", folder, "--delete")
    assert result.exit_code == 0, result.output
    after = tensors_in(folder)
    assert after.keys() == expected
    assert all(torch.equal(after[key], before[key]) for key in after)
    assert cache("verify", "--cache_dir", folder).exit_code == 0
    assert f"removed {len(before) - len(after)} samples" in result.stdout
    again = cache("gc", some, "--cache_dir", folder, "--delete")
    assert "removed 0 samples" in again.stdout
    for stage in ("cache-latents", "encode-text"):
        data = {"dataset_config": some, "cache_dir": folder}
        assert "nothing to encode" in anima_pipe(stage, **data).ok().said


def test_gc_for_several_datasets_keeps_what_any_of_them_needs(folder, some, dataset):
    result = cache("gc", some, dataset, "--cache_dir", folder, "--delete")
    assert result.exit_code == 0, result.output
    assert "removed 0 samples" in result.stdout


def test_gc_removes_a_shard_that_nobody_needs_whole(folder, tmp_path):
    other = demo_pictures(tmp_path / "other", every=17)
    path = next(other.glob("*.txt"))
    path.write_text("something else")
    for picture in other.iterdir():
        if picture.stem != path.stem:
            picture.unlink()
    # Half the resolution: other latents, even of the same picture.
    needs = tmp_path / "other.toml"
    write_dataset(needs, other)
    needs.write_text(needs.read_text().replace("resolution = 128", "resolution = 64"))
    result = cache("gc", needs, "--cache_dir", folder, "--delete")
    assert result.exit_code == 0, result.output
    assert not list(folder.glob("latents-*/*.tar"))
    assert not list(folder.glob("latents-*/*.index.json"))
    assert len(open_cache(folder).text) == 1  # the empty caption


def test_gc_drops_second_copies(folder, dataset):
    (tar,) = folder.glob("latents-*/*.tar")
    copy = tar.with_name(f"z{tar.name}")
    shutil.copy(tar, copy)
    samples = len(open_cache(folder).latents)
    assert f"{samples} second copies" in cache("stats", "--cache_dir", folder).stdout
    result = cache("gc", dataset, "--cache_dir", folder, "--delete")
    assert f"removed {samples} samples" in result.stdout
    assert list(folder.glob("latents-*/*.tar")) == [tar]
    assert len(open_cache(folder).latents) == samples


def test_options_files_name_their_datasets_and_fill_their_gaps(folder, dataset, tmp_path):
    train_args = tmp_path / "train_args.toml"
    train_args.write_text(f"dataset_config = {json.dumps(str(dataset))}\n")
    result = cache("gc", train_args, "--cache_dir", folder, "--delete")
    assert result.exit_code == 0, result.output
    assert "removed 0 samples" in result.stdout


def test_gc_keeps_what_is_needed_by_options_that_no_file_holds(pictures, tmp_path):
    folder, prompts = tmp_path / "cache", tmp_path / "prompts.txt"
    prompts.write_text("a fox of its own\n")
    shuffled = write_dataset(tmp_path / "shuffled.toml", pictures, shuffle_caption=True)
    given = {"caption_variants": 9, "caption_seed": 5, "sample_prompts": prompts}
    anima_pipe("encode-text", dataset_config=shuffled, cache_dir=folder, **given).ok()
    result = cache("gc", shuffled, "--cache_dir", folder, *options(**given))
    assert "would remove 0 samples" in result.stdout, result.output
    without = cache("gc", shuffled, "--cache_dir", folder)
    assert "would remove 0 samples" not in without.stdout, without.output


def test_weighted_prompts_and_kept_backslashes_are_known_to_gc_and_to_verify(tmp_path):
    pictures, folder = demo_pictures(tmp_path / "pictures", every=18), tmp_path / "cache"
    (pictures / "01_meadow.txt").write_text(r"fox \(animal\), meadow")
    (tmp_path / "prompts.txt").write_text("a (red fox:1.3) --n (blurry)\n")
    given = {"keep_backslashes": True, "sample_prompts": tmp_path / "prompts.txt"}
    data = write_dataset(tmp_path / "dataset.toml", pictures)
    anima_pipe("encode-text", dataset_config=data, cache_dir=folder, **given).ok()

    kept = cache("gc", data, "--cache_dir", folder, *options(**given))
    assert "would remove 0 samples" in kept.stdout, kept.output
    # The caption as it is written, the two prompts, and six that saves would be measured on.
    without = cache("gc", data, "--cache_dir", folder)
    assert "would remove 9 samples" in without.stdout, without.output
    models = {name: MODEL[name] for name in ("qwen3", "t5_tokenizer_dir")}
    verified = cache("verify", "--cache_dir", folder, "--reencode", 9, *options(**models))
    assert verified.exit_code == 0, verified.output


def test_gc_refuses_to_guess_what_an_unreadable_picture_needs(folder, some):
    (some.parent / "half" / "broken.png").write_bytes(b"no picture")
    before = tensors_in(folder)
    result = cache("gc", some, "--cache_dir", folder, "--delete")
    assert result.exit_code == 2
    assert "broken.png" in result.stderr
    assert tensors_in(folder).keys() == before.keys()


def test_a_kill_between_writing_and_removing_leaves_two_copies_and_no_harm(folder, some):
    (tar,) = folder.glob("latents-*/*.tar")
    whole, sidecar = tar.read_bytes(), index_path(tar).read_bytes()
    cache("gc", some, "--cache_dir", folder, "--delete")
    tar.write_bytes(whole)
    index_path(tar).write_bytes(sidecar)
    assert cache("verify", "--cache_dir", folder).exit_code == 0
    cache("gc", some, "--cache_dir", folder, "--delete")
    (left,) = folder.glob("latents-*/*.tar")
    assert left.stat().st_size < len(whole)
    assert cache("verify", "--cache_dir", folder).exit_code == 0


@pytest.mark.parametrize("words", [("stats",), ("verify",)])
def test_a_folder_without_a_cache_is_an_error(tmp_path, words):
    result = cache(*words, "--cache_dir", tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
