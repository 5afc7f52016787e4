"""Resolve everything that the package and its extras install, and lock it in constraints.txt.

Torch stays at the version that is locked unless another is named: its newest release brings
gigabytes for a particular kind of GPU, so moving it is a decision of its own.

Run it as `make lock`, on the oldest Python that the project supports: the newest releases of some
packages install on later Pythons only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OWN_NAME = "anima-pipe"
LEFT_TO_TORCH = re.compile(r"nvidia[-_]|cuda[-_]|triton$|pytorch[-_]triton")
"""Packages that a torch for GPUs installs, in exactly the versions that it names itself."""

OLDEST_PYTHON = (3, 11)
HEADER = """\
# What is tested, to the version: the package and its extras. Written by `make lock`.
# What a torch for GPUs brings along is not here: torch itself names it exactly.
"""


def main() -> None:
    """Read the options, resolve, and write the file."""
    parser = argparse.ArgumentParser(description="Lock all dependencies in constraints.txt.")
    parser.add_argument("--torch", help="version of torch (default: the one that is locked)")
    if sys.version_info[:2] != OLDEST_PYTHON:
        sys.exit("locking takes Python 3.11; remove .venv and run: make lock PYTHON=python3.11")
    torch_version = parser.parse_args().torch or locked_version("torch")
    pins = pins_of(resolve(f"torch=={torch_version}"))
    CONSTRAINTS.write_text(HEADER + "".join(f"{pin}\n" for pin in pins))
    print(f"{CONSTRAINTS.name}: {len(pins)} packages")


def locked_version(name: str) -> str:
    """Return the version that constraints.txt has for a package."""
    for line in CONSTRAINTS.read_text().splitlines():
        package, _, version = line.partition("==")
        if package == name:
            return version
    sys.exit(f"{CONSTRAINTS} does not lock {name}; name its version: --{name} 1.2.3")


def resolve(constraint: str) -> Mapping[str, Any]:
    """Return pip's report on what a fresh environment with every extra would hold."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.txt"
        draft.write_text(constraint + "\n")
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report)]
        command += ["--constraint", str(draft), "--editable", f"{ROOT}[dev,fuzz,remote]"]
        subprocess.run(command, check=True)  # noqa: S603 - our own command line
        return json.loads(report.read_text())


def pins_of(report: Mapping[str, Any]) -> list[str]:
    """Return name==version for every package of the report but our own and torch's GPU parts."""
    pins: list[str] = []
    for package in report["install"]:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        # "2.13.0+cpu" is a build of 2.13.0; which build is installed depends on the machine.
        version = package["metadata"]["version"].partition("+")[0]
        if name != OWN_NAME and not LEFT_TO_TORCH.match(name):
            pins.append(f"{name}=={version}")
    return sorted(pins)


if __name__ == "__main__":
    main()
