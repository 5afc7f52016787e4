"""Damage is found, named and mended by the next caching run; sidecars can always be rebuilt."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from anima_pipe.errors import CacheError
from anima_pipe.shards import LatentWriter, MaskWriter, open_cache
from anima_pipe.shards.checksum import with_checksum
from anima_pipe.shards.contents import tidy

FINGERPRINT = "3fa1c2" + 58 * "0"
KEYS = [f"key{number}" for number in range(5)]


def latent(key, width=6):
    return torch.full((16, 4, width), float(KEYS.index(key)))


def write(folder, keys=KEYS, width=6):
    with LatentWriter(folder, FINGERPRINT, "fp16", "vae.safetensors") as writer:
        for key in keys:
            writer.add(key, latent(key, width), {"note": f"this is {key}"})
    return newest_tar(folder)


def newest_tar(folder):
    return max(folder.glob("*/*.tar"), key=lambda path: path.stat().st_mtime_ns)


def sidecar_of(tar):
    return tar.with_suffix(".index.json")


def flip(tar, offset):
    content = bytearray(tar.read_bytes())
    content[offset] ^= 0x40
    tar.write_bytes(content)


def contents(folder):
    store = open_cache(folder).latents
    return {key: (store[key].clone(), store.metadata(key)) for key in store}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key][0], other[key][0]) and one[key][1] == other[key][1] for key in one
    )


@pytest.fixture
def tar(tmp_path):
    return write(tmp_path)


@pytest.fixture(params=["tensor", "metadata"])
def damaged(request, tar):
    """A shard in which one byte of key2 is flipped."""
    mark = {"tensor": latent("key2").half().numpy().tobytes(), "metadata": b"this is key2"}
    flip(tar, tar.read_bytes().index(mark[request.param]) + 5)
    return tar


def test_a_flipped_byte_is_found_when_its_sample_is_read(tmp_path, damaged):
    store = open_cache(tmp_path).latents

    assert torch.equal(store["key1"], latent("key1").half())
    with pytest.raises(
        CacheError, match=rf"key2 in .*{damaged.name} is damaged.*\n.*cache-latents"
    ):
        store["key2"]


def exchange_pages(tar: Path, key: str) -> None:
    """Let two pages of a sample's tensors change places."""
    content = bytearray(tar.read_bytes())
    start = content.index(f"{key}.safetensors".encode()) + 1024
    one, other = slice(start, start + 4096), slice(start + 4096, start + 8192)
    assert content[one] != content[other]
    content[one], content[other] = content[other], content[one]
    tar.write_bytes(content)


def lose_the_quick_hashes(tar: Path) -> None:
    """Make a sidecar one from before there were any."""
    sidecar = json.loads(sidecar_of(tar).read_text())
    del sidecar["checksum"], sidecar["safetensors"]["xxh3"]
    sidecar_of(tar).write_bytes(with_checksum(json.dumps(sidecar).encode()))


@pytest.mark.parametrize("is_old", [False, True])
def test_pages_that_changed_places_are_found_when_their_sample_is_read(tmp_path, is_old):
    with LatentWriter(tmp_path, FINGERPRINT, "fp32", "vae.safetensors") as writer:
        for number, key in enumerate(KEYS):
            writer.add(key, torch.arange(16.0 * 16 * 16).reshape(16, 16, 16) + number, {})
    tar = newest_tar(tmp_path)
    exchange_pages(tar, "key2")
    if is_old:
        lose_the_quick_hashes(tar)

    store = open_cache(tmp_path).latents

    assert store["key1"][0, 0, 0] == 1
    with pytest.raises(CacheError, match=r"key2 in .* is damaged"):
        store["key2"]


def test_zeroed_pages_of_a_mask_that_is_white_all_over_are_found(tmp_path):
    with MaskWriter(tmp_path) as writer:
        for key in KEYS:
            writer.add(key, torch.ones(128, 128), {})
    (tar,) = tmp_path.glob("*/*.tar")
    content = bytearray(tar.read_bytes())
    start = content.index(b"key2.safetensors") + 2048
    content[start : start + 8192] = bytes(8192)
    tar.write_bytes(content)

    masks = open_cache(tmp_path).masks

    assert masks["key1"].min() == 1
    with pytest.raises(CacheError, match=r"key2 in .* is damaged"):
        masks["key2"]


def test_every_single_flipped_byte_of_a_sample_is_found(tmp_path, tar):
    whole = tar.read_bytes()
    start = whole.index(b"key2.json") + 512
    end = whole.index(b"key3.json")
    contained = [o for o in range(start, end) if (o - start) % 37 == 0]
    missed = []
    for offset in contained:
        tar.write_bytes(whole)
        sidecar_of(tar).unlink(missing_ok=True)
        open_cache(tmp_path)
        flip(tar, offset)
        try:
            found = open_cache(tmp_path).latents["key2"]
        except CacheError:
            continue
        missed += [offset] if not torch.equal(found, latent("key2").half()) else []
    assert missed == []


def test_verify_names_the_damaged_sample(tmp_path, damaged):
    problems = open_cache(tmp_path).latents.verify()

    assert [(problem.key, problem.shard) for problem in problems] == [("key2", damaged)]
    assert "damaged" in str(problems[0])


def test_verify_is_silent_about_a_whole_cache(tmp_path, tar):
    assert open_cache(tmp_path).latents.verify() == []


@pytest.mark.parametrize("how", ["read", "verify"])
def test_a_damaged_sample_once_found_is_absent_until_it_is_encoded_again(tmp_path, damaged, how):
    store = open_cache(tmp_path).latents
    if how == "verify":
        store.verify()
    else:
        with pytest.raises(CacheError):
            store["key2"]

    after = open_cache(tmp_path).latents
    assert sorted(after) == ["key0", "key1", "key3", "key4"]
    assert [problem.key for problem in after.problems] == ["key2"]

    write(tmp_path, ["key2"])
    mended = open_cache(tmp_path).latents
    assert torch.equal(mended["key2"], latent("key2").half())
    assert mended.verify() == []


def test_damage_is_found_without_a_sidecar(tmp_path, damaged):
    sidecar_of(damaged).unlink()

    store = open_cache(tmp_path).latents

    assert sorted(store) == ["key0", "key1", "key3", "key4"]
    assert [problem.key for problem in store.problems] == [None, "key2"]


@pytest.mark.parametrize("loss", ["deleted", "empty", "not JSON", "of another version", "cut"])
def test_a_lost_sidecar_is_rebuilt_with_the_same_content(tmp_path, tar, loss):
    before, bytes_before = contents(tmp_path), sidecar_of(tar).read_bytes()
    if loss == "deleted":
        sidecar_of(tar).unlink()
    else:
        sidecar_of(tar).write_bytes(
            {
                "empty": b"",
                "not JSON": b"\x80",
                "of another version": bytes_before.replace(b'"version":1', b'"version":9'),
                "cut": bytes_before.replace(b'"key4"', b'"key4","key5"'),
            }[loss]
        )

    first = open_cache(tmp_path).latents

    assert "rebuilt from the tar" in str(first.problems[0])
    assert same(contents(tmp_path), before)
    assert sidecar_of(tar).read_bytes() == bytes_before
    assert open_cache(tmp_path).latents.problems == ()


@pytest.mark.parametrize("width", [6, 8], ids=["of the same size", "of another size"])
def test_the_sidecar_of_another_tar_is_not_believed(tmp_path, tar, width):
    other = write(tmp_path / "other", list(reversed(KEYS)), width)
    before = contents(tmp_path)
    shutil.copy(sidecar_of(other), sidecar_of(tar))

    assert same(contents(tmp_path), before)


def test_a_sidecar_that_is_wrong_about_its_tar_is_mended_and_said(tmp_path, tar):
    sidecar = sidecar_of(tar)
    before, right = contents(tmp_path), sidecar.read_bytes()
    swapped = right.replace(b'"key2","key3"', b'"key3","key2"')
    # Without its own checksum, by which it would be made anew when the cache is opened.
    sidecar.write_bytes(swapped.rpartition(b',"checksum"')[0] + b"}")

    with pytest.raises(CacheError, match=r"sidecar of .* was wrong .*\n.*again"):
        open_cache(tmp_path).latents["key2"]

    assert same(contents(tmp_path), before)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_of_a_tar_that_was_cut_off_the_whole_samples_are_read(tmp_path, tar, kept):
    before = contents(tmp_path)
    content = tar.read_bytes()
    tar.write_bytes(content[: int(kept * len(content))])

    store = open_cache(tmp_path).latents

    assert list(store) == KEYS[: len(store)]
    assert len(store) >= int(5 * kept) - 1
    assert all(torch.equal(store[key], before[key][0]) for key in store)
    assert tar.name in str(store.problems[0])


def test_a_shard_that_shrinks_under_an_open_cache_is_an_error_not_a_crash(tmp_path, tar):
    store = open_cache(tmp_path).latents
    tar.write_bytes(tar.read_bytes()[:3000])

    with pytest.raises(CacheError, match="was changed or cut off"):
        store["key4"]
    assert "was changed or cut off" in str(store.verify()[0])


def test_a_shard_that_vanishes_under_an_open_cache_is_named(tmp_path, tar):
    store = open_cache(tmp_path).latents
    tar.unlink()

    with pytest.raises(CacheError, match=rf"{tar.name} cannot be opened"):
        store["key4"]


def test_a_shard_that_is_gone_is_named_by_its_sidecar_until_the_next_caching_run(tmp_path, tar):
    tar.unlink()
    for _ in range(2):
        (problem,) = open_cache(tmp_path, "3fa1c2").latents.verify()
        assert (problem.shard, "is gone" in problem.reason) == (tar, True)
    tidy(tmp_path)
    assert open_cache(tmp_path, "3fa1c2").latents.verify() == []


def test_a_tar_that_holds_something_else_is_said_and_not_used(tmp_path, tar):
    foreign = tar.with_name("foreign.tar")
    shutil.copy(tar, foreign)
    foreign.write_bytes(foreign.read_bytes().replace(b'"latent"', b'"patent"'))

    store = open_cache(tmp_path).latents

    assert sorted(store) == KEYS
    assert any("foreign.tar" in str(problem) for problem in store.problems)


def test_a_read_only_cache_without_sidecars_is_still_read(tmp_path, tar, monkeypatch):
    before = contents(tmp_path)
    sidecar_of(tar).unlink()
    sidecar_of(tar).mkdir()  # root may write anywhere, but not a file over a folder

    assert same(contents(tmp_path), before)
