"""List the wheels of a folder, and check that with what is present elsewhere they are complete.

Each package is there once, everything that a wheel requires is in the folder or among what is
present, and the folder is no larger than said. Called by `gpu_wheels.sh`.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "os_name": "posix",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "extra": "",
}
"""What decides which of a wheel's requirements count."""


def main() -> int:
    """Print the list; return 1 where something is missing, double or too large."""
    parser = argparse.ArgumentParser(description="List and check the wheels of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most-bytes", type=int, required=True)
    parser.add_argument("--wanted", nargs="+", required=True)
    parser.add_argument("--present", nargs="+", required=True)
    given = parser.parse_args()
    wheels = sorted(given.folder.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:8.2f} MiB  {wheel.name}")
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{size / 2**20:8.2f} MiB  {len(wheels)} wheels in {given.folder}")
    problems = [*problems_of(wheels, set(given.wanted), set(given.present))]
    if size > given.most_bytes:
        problems.append(f"{size / 2**20:.1f} MiB are more than {given.most_bytes / 2**20:.0f} MiB")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def problems_of(wheels: list[Path], wanted: set[str], present: set[str]) -> Iterator[str]:
    """Yield what is wrong with the folder as a whole.

    Args:
        wheels: Its files.
        wanted: Names of the packages that should be there.
        present: Names of those that are elsewhere already.
    """
    names = [canonicalize_name(wheel.name.partition("-")[0]) for wheel in wheels]
    yield from (f"{name} is there twice" for name in set(names) if names.count(name) > 1)
    yield from (f"{name} is not there" for name in sorted(wanted - set(names)))
    for wheel in wheels:
        for requirement in requirements(wheel):
            if canonicalize_name(requirement.name) not in present | set(names):
                yield f"{wheel.name} requires {requirement}, which is in neither place"


def requirements(wheel: Path) -> Iterator[Requirement]:
    """Yield what a wheel requires on the machine it is for, extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(dict(THERE)):
            yield requirement


if __name__ == "__main__":
    sys.exit(main())
