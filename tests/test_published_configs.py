"""Configurations that people published for training Anima: what becomes of each one."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from anima_pipe.kohya.dataset_keys import DATASET_KEYS
from anima_pipe.kohya.dataset_toml import examine_dataset_config
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.resolve import examine
from anima_pipe.kohya.toml_text import toml_lines

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
)
READ_AS_THEY_ARE = [config for config in PUBLISHED if config["form"] in ("toml", "cli")]
"""The others, a root-style file and a preset of a GUI, are converted: test_convert_config.py."""

REFUSED: dict[str, set[str]] = {}
"""What stops a configuration in Kohya's dialect, for a reason that its author would see."""


def keys_of(tables: object) -> Iterable[str]:
    """All keys of tables within tables, but the names of the tables themselves."""
    if isinstance(tables, dict):
        for key, value in tables.items():
            if key not in ("general", "datasets", "subsets"):
                yield key
            yield from keys_of(value)
    if isinstance(tables, list):
        for table in tables:
            yield from keys_of(table)


def foreign_keys(config: dict) -> set[str]:
    """The keys that neither Kohya nor the seed has."""
    of_options = {name for name in config["train_args"] if find_option(name) is None}
    return of_options | {key for key in keys_of(config["dataset"]) if key not in DATASET_KEYS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "images" / "10_fox").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told_of(config: dict) -> tuple[list[str], list[str]]:
    """Return what stops a configuration, and what it is warned of."""
    args = config["train_args"]
    if config["form"] == "cli":
        typed = {name: tuple(v) if isinstance(v, list) else v for name, v in args.items()}
        resolved, findings = examine("train", typed)
    else:
        file = Path("train_args.toml")
        file.write_text("\n".join(toml_lines(args)), encoding="utf-8")
        resolved, findings = examine("train", {}, file)
    if config["dataset"]:
        file = Path("dataset.json")
        file.write_text(json.dumps(config["dataset"]), encoding="utf-8")
        findings += examine_dataset_config(file, resolved.dataset_fallbacks()).findings
    return [finding.problem for finding in findings], list(resolved.warnings)


def stopped_by(config: dict, problems: list[str]) -> set[str]:
    """The keys that the problems are about."""
    keys = {*config["train_args"], *keys_of(config["dataset"])}
    return {
        next((key for key in keys if key in problem.replace(":", " ").split()[:1]), problem)
        for problem in problems
    }


def in_kohyas_dialect(config: dict) -> bool:
    return not foreign_keys(config)


@pytest.mark.parametrize(
    "config",
    [config for config in READ_AS_THEY_ARE if in_kohyas_dialect(config)],
    ids=lambda config: config["id"],
)
def test_a_configuration_in_kohyas_dialect_is_accepted(config: dict):
    problems, _warnings = told_of(config)
    assert stopped_by(config, problems) == REFUSED.get(config["id"], set())


def test_at_most_one_in_ten_is_stopped():
    dialect = [config for config in READ_AS_THEY_ARE if in_kohyas_dialect(config)]
    assert len(dialect) >= 10 * len(REFUSED)


@pytest.mark.parametrize(
    "config",
    [config for config in READ_AS_THEY_ARE if not in_kohyas_dialect(config)],
    ids=lambda config: config["id"],
)
def test_every_foreign_key_is_called_by_its_owner(config: dict):
    problems, warnings = told_of(config)
    said = [*problems, *warnings]
    owned = [line for line in said if " is an option of " in line or " is a key of " in line]
    for key in foreign_keys(config):
        assert any(key in line.replace(":", " ").replace(".", " ").split() for line in owned)
