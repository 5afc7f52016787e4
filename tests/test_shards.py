"""What is written to a cache is read back, by us and by webdataset, however it was written."""

import os
import pickle
import resource
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from array import array
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from anima_pipe.errors import CacheError, DataError
from anima_pipe.records import TextCondition
from anima_pipe.shards import LatentWriter, TextWriter, open_cache
from anima_pipe.shards.index import MemberColumns, ShardIndex, TensorColumns
from anima_pipe.shards.sidecar import write_index

FINGERPRINT = "3fa1c2" + 58 * "0"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def latent(number, shape=(16, 4, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def write_latents(folder, numbers, dtype="fp16", shard_bytes=2**20, fingerprint=FINGERPRINT):
    with LatentWriter(folder, fingerprint, dtype, "vae.safetensors", shard_bytes) as writer:
        for number in numbers:
            writer.add(f"key{number}", latent(number), {"number": number})
    return writer


def condition(lq=3, lt=4, scale=1.0):
    return TextCondition(
        qwen_hidden=scale * latent(lq, (lq, 8)), t5_ids=torch.arange(lt, 0, -1, dtype=torch.int32)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=10)
@given(
    shapes=st.lists(
        st.tuples(st.just(16), st.integers(1, 24), st.integers(1, 24)),
        min_size=1,
        max_size=8,
    ),
    shard_bytes=st.sampled_from([1, 5000, 2**20]),
)
def test_latents_come_back_in_the_stored_dtype(dtype, shapes, shard_bytes):
    latents = {f"{n:032x}": latent(n, shape) for n, shape in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        with LatentWriter(folder, FINGERPRINT, dtype, "vae", shard_bytes) as writer:
            for key, value in latents.items():
                writer.add(key, value, {"key": key})
        store = open_cache(folder).latents

        assert list(store.keys()) == list(latents)
        for key, value in latents.items():
            assert store[key].dtype == DTYPES[dtype]
            assert torch.equal(store[key], value.to(DTYPES[dtype]))
            assert store.shape(key) == tuple(value.shape)
            assert store.metadata(key) == {"key": key}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lq", "lt"), [(0, 1), (1, 2), (7, 3), (600, 700)])
def test_captions_come_back_at_their_real_length(tmp_path, dtype, lq, lt):
    wanted = condition(lq, lt)
    with TextWriter(tmp_path, FINGERPRINT, dtype, "qwen") as writer:
        writer.add("caption", wanted, {})

    found = open_cache(tmp_path).text["caption"]

    assert torch.equal(found.qwen_hidden, wanted.qwen_hidden.to(DTYPES[dtype]))
    assert found.qwen_hidden.shape == (lq, 8)
    assert torch.equal(found.t5_ids, wanted.t5_ids)
    assert found.t5_ids.dtype == torch.int32


def test_webdataset_reads_the_shards_with_no_help_from_us(tmp_path):
    write_latents(tmp_path, range(10), shard_bytes=5000)
    shards = sorted(str(path) for path in tmp_path.glob("*/*.tar"))

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # its open files
        samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())

    assert len(shards) > 1
    assert [sample["__key__"] for sample in samples] == [f"key{n}" for n in range(10)]
    for number, sample in enumerate(samples):
        assert torch.equal(load(sample["safetensors"])["latent"], latent(number).half())
        assert sample["json"]["number"] == number


def test_the_same_samples_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_latents(tmp_path / name, range(5))

    (one,), (other,) = (list(tmp_path.glob(f"{name}/*/*.tar")) for name in ("a", "b"))

    assert one.read_bytes() == other.read_bytes()


def test_a_sample_lies_in_memory_of_its_own_and_brings_only_itself(tmp_path):
    write_latents(tmp_path, range(3))
    store = open_cache(tmp_path).latents

    one = store["key1"]
    one.zero_()  # what is done to one is done to no other

    assert torch.equal(store["key1"], latent(1).half())
    assert one.untyped_storage().nbytes() == one.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_read_at_once_holds_what_its_samples_hold(tmp_path, dtype):
    write_latents(tmp_path, range(5), dtype, shard_bytes=8000)
    store = open_cache(tmp_path).latents
    keys = ["key3", "key0", "key3", "key4"]

    for _ in range(2):  # the first reading compares more than the second
        batch = store.stacked(keys)
        assert batch.dtype == DTYPES[dtype]
        assert torch.equal(batch, torch.stack([store[key] for key in keys]))


def test_a_batch_of_two_dtypes_is_in_one_that_holds_all(tmp_path):
    large = latent(1) * 1e5
    with LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as writer:
        writer.add("small", latent(0), {})
        writer.add("large", large, {})

    batch = open_cache(tmp_path).latents.stacked(["small", "large"])

    assert torch.equal(batch, torch.stack([latent(0).half().float(), large.bfloat16().float()]))


def test_the_writers_summary_counts_what_was_published(tmp_path):
    writer = write_latents(tmp_path, [1, 2, 3, 2, 1], shard_bytes=5000)

    summary = writer.summary

    tars = list(tmp_path.glob("*/*.tar"))
    assert (summary.samples, summary.shards) == (3, len(tars))
    assert summary.written_bytes == sum(tar.stat().st_size for tar in tars)


def test_shards_end_before_they_outgrow_their_size(tmp_path):
    write_latents(tmp_path, range(20), shard_bytes=10_000)

    sizes = [path.stat().st_size for path in tmp_path.glob("*/*.tar")]

    assert len(sizes) > 3
    assert max(sizes) <= 10_000


def test_an_index_of_several_writers_is_their_union(tmp_path):
    write_latents(tmp_path, range(4))
    write_latents(tmp_path, range(2, 7))

    store = open_cache(tmp_path).latents

    assert sorted(store) == [f"key{n}" for n in range(7)]
    assert len(store) == 7


def test_of_two_copies_of_a_sample_the_older_one_is_read(tmp_path):
    with LatentWriter(tmp_path, FINGERPRINT, "fp32", "vae") as first:
        first.add("key", torch.zeros(16, 2, 2), {"copy": 1})
    for sidecar in tmp_path.glob("*/2*"):
        # as if it had been written in the last century
        sidecar.rename(sidecar.with_name(f"19{sidecar.name[2:]}"))
    with LatentWriter(tmp_path, FINGERPRINT, "fp32", "vae") as second:
        second.add("key", torch.ones(16, 2, 2), {"copy": 2})

    assert [open_cache(tmp_path).latents.metadata("key")["copy"] for _ in range(3)] == [1, 1, 1]


def test_a_value_beyond_fp16_keeps_its_sample_in_bf16_and_is_reported(tmp_path):
    with TextWriter(tmp_path, FINGERPRINT, "fp16", "qwen") as writer:
        writer.add("small", condition(), {})
        writer.add("large", condition(scale=1e5), {})

    text = open_cache(tmp_path).text
    assert text["small"].qwen_hidden.dtype == torch.float16
    assert torch.equal(text["large"].qwen_hidden, condition(scale=1e5).qwen_hidden.bfloat16())
    assert writer.summary.kept_in_bf16 == ("large",)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused_by_key_and_spoils_nothing(tmp_path, dtype, value):
    spoilt = latent(1)
    spoilt[3, 2, 1] = value
    with LatentWriter(tmp_path, FINGERPRINT, dtype, "vae") as writer:
        writer.add("before", latent(0), {})
        with pytest.raises(DataError, match="NaN or infinite values for sample spoilt"):
            writer.add("spoilt", spoilt, {})
        writer.add("after", latent(2), {})

    assert list(open_cache(tmp_path).latents) == ["before", "after"]


def test_a_missing_sample_is_named_with_the_command_that_makes_it(tmp_path):
    write_latents(tmp_path, range(2))

    with pytest.raises(CacheError, match=r"sample nosuch is not among the 2 .*\n.*cache-latents"):
        open_cache(tmp_path).latents["nosuch"]


def test_a_cache_that_is_not_there_is_empty_and_says_so_when_read(tmp_path):
    cache = open_cache(tmp_path / "nowhere")

    assert (len(cache.text), "key" in cache.text) == (0, False)
    with pytest.raises(CacheError, match=r"nowhere, which has no such cache\n.*encode-text"):
        cache.text["key"]


class TestChoosingAmongCaches:
    @pytest.fixture
    def folder(self, tmp_path):
        write_latents(tmp_path, [1], fingerprint="aaaa" + 60 * "0")
        write_latents(tmp_path, [2], fingerprint="bbbb" + 60 * "0")
        write_latents(tmp_path, [3], fingerprint="bbbb" + 60 * "0", dtype="fp32")
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("aaaa" + 60 * "0", "key1"),
            ("aaaa", "key1"),
            ("bbbb" + 60 * "0" + "-fp16", "key2"),
            ("bbbb00000000-fp32", "key3"),
        ],
    )
    def test_the_fingerprint_says_which(self, folder, name, key):
        assert list(open_cache(folder, latents=name).latents) == [key]

    @pytest.mark.parametrize("name", [None, "bbbb" + 60 * "0"])
    def test_several_that_fit_are_named(self, folder, name):
        with pytest.raises(CacheError, match=r"latents-bbbb00000000-fp16 \(vae.safetensors\), "):
            open_cache(folder, latents=name)

    def test_one_that_was_never_filled_is_not_in_the_way(self, tmp_path):
        write_latents(tmp_path, [], fingerprint="cccc" + 60 * "0")
        write_latents(tmp_path, [1])

        assert list(open_cache(tmp_path).latents) == ["key1"]


def test_a_folder_made_by_another_encoder_is_refused(tmp_path):
    folder = write_latents(tmp_path, [1]).folder
    description = folder / "cache.json"
    description.write_text(description.read_text().replace(FINGERPRINT, FINGERPRINT[:-1] + "9"))

    with pytest.raises(CacheError, match=r"describes another cache than vae\.safetensors"):
        write_latents(tmp_path, [2])


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "latents"}', None])
def test_a_description_that_cannot_be_read_is_named(tmp_path, content):
    description = write_latents(tmp_path, [1]).folder / "cache.json"
    description.unlink()
    if content is not None:
        description.write_text(content)

    with pytest.raises(CacheError, match=r"cache\.json cannot be read"):
        open_cache(tmp_path)


def test_a_cache_of_a_later_format_is_refused(tmp_path):
    folder = write_latents(tmp_path, [1]).folder
    description = folder / "cache.json"
    description.write_text(description.read_text().replace('_version": 1', '_version": 2'))

    with pytest.raises(CacheError, match="has format 2, this version reads 1"):
        open_cache(tmp_path)


def test_a_pickled_cache_reads_the_same_samples(tmp_path):
    write_latents(tmp_path, range(5), shard_bytes=5000)
    cache = open_cache(tmp_path)
    original = cache.latents["key3"]

    copy = pickle.loads(pickle.dumps(cache))

    assert torch.equal(copy.latents["key3"], original)
    assert list(copy.latents) == list(cache.latents)


def test_worker_processes_read_the_cache(tmp_path):
    write_latents(tmp_path, range(6))
    script = f"""
import torch
from anima_pipe.shards import open_cache

class Latents(torch.utils.data.Dataset):
    def __init__(self): self.store = open_cache({str(tmp_path)!r}).latents
    def __len__(self): return len(self.store)
    def __getitem__(self, index): return self.store[f"key{{index}}"]

if __name__ == "__main__":
    latents = Latents()
    latents[0]
    loader = torch.utils.data.DataLoader(latents, batch_size=3, num_workers=2)
    print(sum(batch.double().sum() for batch in loader).item())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = sum(latent(number).half().double().sum() for number in range(6)).item()
    assert float(ran.stdout) == pytest.approx(expected, rel=1e-9)


def test_many_shards_need_few_file_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them would take seconds
    write_latents(tmp_path, range(300), shard_bytes=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store = open_cache(tmp_path).latents
        first = store["key0"]
        others = [store[f"key{number}"].sum().item() for number in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert others == [latent(number).half().sum().item() for number in range(300)]
    assert torch.equal(first, latent(0).half())  # its mapping outlives its eviction


def test_a_cache_of_100_000_samples_opens_from_its_sidecars_in_little_memory(tmp_path):
    folder = write_latents(tmp_path, []).folder
    rows = 20_000
    for number in range(5):
        index = ShardIndex(
            tar=f"w-{number:06d}.tar",
            tar_bytes=rows * 2**18,
            keys=[f"{number * rows + row:032x}" for row in range(rows)],
            payloads=MemberColumns(*(array("q", range(rows)) for _ in range(3))),
            payload_hashes=array("Q", range(rows)),
            metadata=MemberColumns(*(array("q", range(rows)) for _ in range(3))),
        )
        shapes = [(16, 64 + 8 * (row % 9), 96) for row in range(rows)]
        index.tensors["latent"] = TensorColumns(["F16"] * rows, shapes, array("q", range(rows)))
        write_index(folder / index.tar, index)
        with (folder / index.tar).open("wb") as tar:
            tar.truncate(index.tar_bytes)  # sparse: 25 GiB that nobody should read

    tracemalloc.start()
    store = open_cache(tmp_path).latents
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(store) == 100_000
    assert store.shape(f"{99_999:032x}") == (16, 64 + 8 * (19_999 % 9), 96)
    assert peak < 300e6


@pytest.mark.parametrize("key", ["", "a/b", "a.b", "x" * 81, "ключ"])
def test_a_key_that_webdataset_would_split_is_refused(tmp_path, key):
    with (
        LatentWriter(tmp_path, FINGERPRINT, "fp16", "vae") as writer,
        pytest.raises(ValueError, match="cannot name a sample"),
    ):
        writer.add(key, latent(1), {})


def test_importing_the_keys_does_not_import_torch():
    script = "import sys, anima_pipe.shards.keys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_description_names_the_encoder_for_people(tmp_path):
    folder = write_latents(tmp_path, [1]).folder

    assert folder == Path(tmp_path) / "latents-3fa1c2000000-fp16"
    assert open_cache(tmp_path).latents.identity.encoder_name == "vae.safetensors"
