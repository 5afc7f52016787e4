"""A fingerprint changes exactly when what an encoder computes may change."""

import json
import os
import time
from pathlib import Path

import pytest

from anima_pipe.encoders import text_fingerprint, vae_fingerprint
from anima_pipe.errors import CheckpointError, ConfigError

LARGE = 17 * 2**20
"""More than what is hashed anew each time."""


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """Where hashes are remembered: never in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anima-pipe" / "hashes.json"


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_old(path: Path, content: bytes) -> Path:
    """Write a file that was last changed an hour ago, as most checkpoints were."""
    write(path, content)
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


@pytest.fixture
def text_files(tmp_path):
    t5 = {name: b"t5" + name.encode() for name in ("config.json", "spiece.model", "tokenizer.json")}
    qwen = {name: b"qwen" + name.encode() for name in ("config.json", "model.safetensors")}
    qwen["tokenizer.json"] = b"qwen tokens"
    return [
        write(tmp_path / folder / name, content)
        for folder, files in (("t5", t5), ("qwen", qwen))
        for name, content in files.items()
    ]


def test_the_name_and_place_of_a_vae_do_not_matter(tmp_path):
    one = write(tmp_path / "vae.safetensors", b"weights")
    other = write(tmp_path / "models" / "wan.safetensors", b"weights")
    assert vae_fingerprint(one) == vae_fingerprint(other)
    assert len(bytes.fromhex(vae_fingerprint(one))) == 32


def test_one_changed_byte_changes_the_fingerprint(tmp_path):
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    before = vae_fingerprint(path)
    content = bytearray(path.read_bytes())
    content[-1] += 1
    path.write_bytes(content)
    assert vae_fingerprint(path) != before


def test_every_file_of_the_text_encoder_counts(tmp_path, text_files):
    fingerprints = {text_fingerprint(tmp_path / "qwen", tmp_path / "t5")}
    for path in text_files:
        path.write_bytes(path.read_bytes() + b"!")
        fingerprints.add(text_fingerprint(tmp_path / "qwen", tmp_path / "t5"))
    assert len(fingerprints) == 1 + len(text_files)


def test_a_file_that_no_encoder_reads_does_not_count(tmp_path, text_files):
    before = text_fingerprint(tmp_path / "qwen", tmp_path / "t5")
    write(tmp_path / "qwen" / "README.md", b"new")
    assert text_fingerprint(tmp_path / "qwen", tmp_path / "t5") == before


def test_a_vae_and_a_text_encoder_are_never_mistaken_for_each_other(tmp_path, text_files):
    vae = tmp_path / "qwen" / "model.safetensors"
    assert vae_fingerprint(vae) != text_fingerprint(vae, tmp_path / "t5")


def test_a_large_file_is_hashed_once(tmp_path, memory):
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    before = vae_fingerprint(path)
    # What is remembered is used: a wrong memory shows.
    stored = json.loads(memory.read_bytes())
    ((stamp, _),) = stored.values()
    memory.write_text(json.dumps({next(iter(stored)): [stamp, "wrong"]}))
    assert vae_fingerprint(path) != before


def test_a_file_replaced_by_one_of_the_same_size_and_age_is_noticed(tmp_path):
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    before = vae_fingerprint(path)
    other = write(tmp_path / "other", b"b" * LARGE)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert vae_fingerprint(path) != before


def test_new_bytes_in_a_file_with_its_old_date_are_noticed(tmp_path):
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    before = vae_fingerprint(path)
    status = path.stat()
    path.write_bytes(b"b" * LARGE)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino
    assert vae_fingerprint(path) != before


def test_a_file_that_may_still_be_changing_is_not_remembered(tmp_path, memory):
    vae_fingerprint(write(tmp_path / "vae.safetensors", b"a" * LARGE))
    assert not memory.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"x": 1}', b'{"x": [["a"], "b"]}', b"\xff"]
)
def test_a_damaged_memory_is_forgotten(tmp_path, memory, content):
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    before = vae_fingerprint(path)
    memory.write_bytes(content)
    assert vae_fingerprint(path) == before


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path, memory):
    write(memory.parent, b"a file where the folder should be")
    path = write_old(tmp_path / "vae.safetensors", b"a" * LARGE)
    assert vae_fingerprint(path) == vae_fingerprint(path)


def test_missing_files_are_named(tmp_path, text_files):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        vae_fingerprint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        text_fingerprint(tmp_path / "nowhere", tmp_path / "t5")
    (tmp_path / "t5" / "spiece.model").unlink()
    with pytest.raises(ConfigError, match=r"lacks spiece\.model"):
        text_fingerprint(tmp_path / "qwen", tmp_path / "t5")


def test_fingerprints_need_no_torch(tmp_path):
    import subprocess
    import sys

    path = write(tmp_path / "vae.safetensors", b"weights")
    code = (
        "import sys; from anima_pipe.encoders import vae_fingerprint; "
        f"print(vae_fingerprint({str(path)!r})); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == vae_fingerprint(path), done.stderr
