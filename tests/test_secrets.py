"""What is secret in addresses, options and the environment is said and left behind nowhere."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commands import MODEL, ROOT, TRAINING, anima_pipe, assert_one_error, options, run_apart
from remote_caches import expected, values, write
from s3_server import folder_application, served

from anima_pipe.secrecy import parse_address, redacted
from anima_pipe.shards import open_cache
from anima_pipe.shards.places import open_place, publish_manifest

PASSWORD = "correct-horse-battery"
QUERY_TOKEN = "q0ery-t0ken-of-the-server"
SIGNATURE = "5ea1ed5ea1ed5ea1ed5ea1ed5ea1ed"
HUB_TOKEN = "hf_" + "Zq7" * 11
OPTION_TOKEN = "hub-token-given-as-an-option"
WANDB_KEY = "c0ffee" * 6 + "c0ff"
PLANTED = (PASSWORD, QUERY_TOKEN, SIGNATURE, HUB_TOKEN, OPTION_TOKEN, WANDB_KEY)

PRESIGNED = f"https://b.s3.amazonaws.com/c?X-Amz-Date=20260301T0000Z&X-Amz-Signature={SIGNATURE}"


def found_in(content: bytes) -> list[str]:
    return [secret for secret in PLANTED if secret.encode() in content]


@contextmanager
def guarded(folder: Path) -> Iterator[str]:
    """Serve a cache to who has the password and the token; yield its address with both."""
    hands_out = folder_application(folder)
    basic = base64.b64encode(f"someone:{PASSWORD}".encode()).decode()

    def answer(environ, start_response):
        asked = (environ["QUERY_STRING"], environ.get("HTTP_AUTHORIZATION"))
        if asked != (f"token={QUERY_TOKEN}", f"Basic {basic}"):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return hands_out(environ, start_response)

    with served(answer) as server:
        host = server.address.removeprefix("http://")
        yield f"http://someone:{PASSWORD}@{host}/?token={QUERY_TOKEN}"


def command_lines() -> Iterator[bytes]:
    """Yield what everybody on this machine sees of its processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield (process / "cmdline").read_bytes()


def run_watched(program: list[str], environment: dict[str, str]) -> tuple[str, list[str]]:
    """Run a program; return what it said, and secrets on command lines once it said something."""
    seen: list[str] = []
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(program, cwd=ROOT, env=os.environ | environment, text=True, **both)

    def watch() -> None:
        while process.poll() is None:
            seen.extend(secret for line in command_lines() for secret in found_in(line))
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    with process:
        assert process.stdout
        said = [process.stdout.readline()]
        watching.start()
        said += process.stdout.readlines()
        watching.join()
    assert process.returncode == 0, "".join(said)
    return "".join(said), seen


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_nothing_that_a_run_says_or_leaves_behind_holds_a_secret(cached, tmp_path: Path):
    cache = Path(shutil.copytree(str(cached["cache_dir"]), tmp_path / "served"))
    publish_manifest(cache)
    file = tmp_path / "given" / "train_args.toml"
    file.parent.mkdir()
    file.write_text(
        f'wandb_api_key = "{WANDB_KEY}"\nhuggingface_token = "{OPTION_TOKEN}"\n'
        f'training_comment = "made from {PRESIGNED}"\nmetadata_description = "of {PRESIGNED}"\n'
    )
    left = tmp_path / "left"
    environment = {
        "HF_TOKEN": HUB_TOKEN,
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        **{name: str(left / "wandb") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")},
        "WANDB_DATA_DIR": str(left / "wandb"),
        "ANIMA_PIPE_HOME": str(left / "home"),
    }
    given = {**MODEL, **TRAINING, "dataset_config": cached["dataset_config"], "device": "cpu"}
    given |= {"config_file": file, "output_dir": left / "out", "logging_dir": left / "logs"}
    given |= {"log_with": "all", "save_state": True, "max_data_loader_n_workers": 1}
    with guarded(cache) as address:
        given |= {"cache_dir": address, "cache_mirror_dir": left / "mirrors"}
        program = [sys.executable, "-m", "anima_pipe.cli", "all", *options(**given)]
        said, on_command_lines = run_watched(program, environment)

    assert on_command_lines == []
    assert found_in(said.encode()) == []
    written = [path for path in left.rglob("*") if path.is_file()]
    holding = {path.name: found_in(path.read_bytes()) for path in written}
    assert {name: secrets for name, secrets in holding.items() if secrets} == {}
    assert [path for path in left.rglob("*") if found_in(str(path).encode())] == []
    # All of these are there to be looked into, and tell what is no secret.
    assert {"metrics.jsonl", "mirror.json", "train.json", "train_state.json"} <= holding.keys()
    open_part = b"https://b.s3.amazonaws.com/c?..."
    told = {path.suffix for path in written if open_part in path.read_bytes()}
    assert {".safetensors", ".wandb"} <= told
    assert any(name.startswith("events.") for name in holding)


def test_errors_of_the_hub_hold_no_secret(tmp_path: Path):
    nowhere = f"http://someone:{PASSWORD}@127.0.0.1:9/?token={QUERY_TOKEN}"
    hubs = {"HF_ENDPOINT": nowhere, "MODELSCOPE_ENDPOINT": nowhere}
    tokens = {"HF_TOKEN": HUB_TOKEN, "MODELSCOPE_API_TOKEN": OPTION_TOKEN}
    program = (sys.executable, "-m", "anima_pipe.cli", "fetch-tokenizer")
    where = options(t5_tokenizer_dir=tmp_path / "t5", debug=True)
    homes = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}
    ended = run_apart(*program, *where, **hubs, **tokens, **homes, HF_HUB_OFFLINE="0")

    assert ended.code == 2
    assert "Hugging Face" in ended.said
    assert found_in(ended.said.encode()) == []


def test_a_source_with_a_token_in_its_address_is_refused_without_it(tmp_path: Path):
    source = f"https://someone:{PASSWORD}@example.com/x?token={QUERY_TOKEN}"
    given = {"t5_tokenizer_dir": tmp_path / "t5", "t5_tokenizer_repo_id": source}
    ended = anima_pipe("fetch-tokenizer", **given)

    assert_one_error(ended, "https://example.com/x?...")
    assert found_in(ended.said.encode()) == []


def test_an_address_that_is_refused_is_named_without_its_signature(dataset, tmp_path: Path):
    given = {"dataset_config": dataset, "cache_mirror_dir": tmp_path, "cache_dir": PRESIGNED}
    ended = anima_pipe("cache-latents", **given)
    debugged = anima_pipe("cache-latents", **given, debug=True)

    assert_one_error(ended, "https://b.s3.amazonaws.com/c is signed for one file")
    assert "Traceback" in debugged.said
    assert found_in((ended.said + debugged.said).encode()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:pass@host:80/a?x=1", "https://host:80/a?..."),
        ("https://u:pa/s?s@host/a", "https://host/a"),
        ("https://token-as-a-user@host/a", "https://host/a"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("abfs://container@account/a", "abfs://container@account/a"),
        ("hf://datasets/user/repo@main/a", "hf://datasets/user/repo@main/a"),
        ("file:///a?b@c#d", "file:///a?b@c#d"),
        ("zip://a.zip::https://u:pass@host/b?x=1", "zip://a.zip::https://host/b?..."),
        ("see https://u:pass@h/x?a=b (and https://h/y)", "see https://h/x?... (and https://h/y)"),
        ("GET /b/k?X-Amz-Signature=abc failed", "GET /b/k?... failed"),
        ("{'Authorization': 'Basic c29tZW9uZQ=='}", "{'Authorization': 'Basic ***'}"),
        (f"no access with {HUB_TOKEN}", "no access with ***"),
        ("what? keep_tokens=3, max_token_length=225", "what? keep_tokens=3, max_token_length=225"),
    ],
)
def test_a_text_is_shown_without_what_is_secret_in_it(text: str, shown: str):
    assert redacted(text) == shown


def test_secrets_of_the_environment_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_HUB_TOKEN", OPTION_TOKEN)
    monkeypatch.setenv("SOME_PATH", "not-secret-at-all")

    assert redacted(f"{OPTION_TOKEN} at not-secret-at-all") == "*** at not-secret-at-all"


def test_the_parts_of_an_address_are_those_that_a_browser_sees():
    address = parse_address("https://user:pass@host:8080/a/b?c=d&e=f#g")

    assert (address.protocol, address.user, address.host) == ("https", "user:pass", "host:8080")
    assert (address.path, address.query, address.fragment) == ("/a/b", "c=d&e=f", "g")
    assert address.place == "https://host:8080/a/b"


def test_one_mirror_serves_all_users_of_a_place_and_an_old_one_with_a_password_is_found(
    tmp_path: Path,
):
    write(tmp_path / "cache", range(5))
    publish_manifest(tmp_path / "cache")
    with guarded(tmp_path / "cache") as address:
        place = open_place(address, tmp_path / "m")
        assert values(open_cache(place).latents) == expected(range(5))
        assert open_place(address.replace("someone", "other"), tmp_path / "m") == place
        assert open_place(f"http://{address.rpartition('@')[2]}", tmp_path / "m") == place
        # As it was called when whoever reads it was part of its name.
        [tar] = place.glob("*/*.tar")
        host = address.partition("@")[2].partition("/")[0]
        base = f"http://someone:{PASSWORD}@{host}"
        old = place.with_name(former_name(base))
        place.rename(old)
        (old / "mirror.json").write_text(json.dumps({"url": address, "limit_bytes": 7 * 10**9}))

        assert open_place(address, tmp_path / "m") == place

    assert tar.is_file()
    assert json.loads((place / "mirror.json").read_text())["limit_bytes"] == 7 * 10**9
    assert found_in((place / "mirror.json").read_bytes()) == []
    assert [path for path in tmp_path.rglob("*") if found_in(str(path).encode())] == []


def former_name(base: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", base.partition("://")[2])[-40:].strip("-")
    return f"{name}-{hashlib.blake2b(base.encode(), digest_size=4).hexdigest()}"


def test_a_config_file_that_holds_a_secret_is_readable_by_its_user_alone(dataset, tmp_path: Path):
    config = tmp_path / "own.toml"
    given = {"dataset_config": dataset, "output_dir": tmp_path, "output_config": True}
    anima_pipe("train", config_file=config, wandb_api_key=WANDB_KEY, **given).ok()

    assert WANDB_KEY in config.read_text()
    assert config.stat().st_mode & 0o077 == 0
    printed = anima_pipe("train", wandb_api_key=WANDB_KEY, **given).ok()
    assert found_in((printed.said + printed.printed).encode()) == []
