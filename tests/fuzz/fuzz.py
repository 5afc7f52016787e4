"""Looks for bytes that break a promise, led by the code that they reach: `make fuzz`.

Each target is looked at for so many seconds, in a process of its own. What is found lies in the
folder; once it is understood, it belongs into tests/fuzz/cases/<target>/, where the tests read it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SLOWEST_SECONDS = 60
"""For one example, on a busy machine; what is promised is looked at by `checked`."""
MOST_MEGABYTES = 4096
LONGEST_BYTES = 16_384


def main() -> None:
    """Look at every target that is named, or at all; exit with 1 if anything was found."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description="Fuzz what reads files that strangers wrote.")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, default=Path("output/fuzz"))
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.within:
        look(given.targets[0], given.seconds, given.out)
    broken = [name for name in given.targets or TARGETS if not look_apart(name, given)]
    if broken:
        sys.exit(f"found something, see {given.out}/found: {', '.join(broken)}")


def look_apart(name: str, given: argparse.Namespace) -> bool:
    """Look at one target in a process of its own; tell whether it kept its promises."""
    seconds, out = str(given.seconds), str(given.out)
    program = [sys.executable, __file__, name, "--within", "--seconds", seconds, "--out", out]
    ended = subprocess.run(program, capture_output=True, text=True, errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)|Done (\d+) runs", ended.stderr)
    count = max((int(number) for pair in runs for number in pair if number), default=0)
    print(f"{name:16} {count:9,} examples  {'kept' if ended.returncode == 0 else 'BROKEN'}")
    if ended.returncode:
        print(ended.stderr[-4000:])
    sys.stdout.flush()
    return ended.returncode == 0


def look(name: str, seconds: int, out: Path) -> None:
    """Look at one target until the time is over or something is found; ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: run `make fuzz`, on Linux with an x86-64 processor")
    with atheris.instrument_imports(include=["anima_pipe"]):
        from fuzz_targets import TARGETS, checked

        target = TARGETS[name]
        for seed in target.seeds():
            # For what is imported only now, in time that is nobody's fault.
            try:
                checked(target, seed)
            except AssertionError as error:
                print(error)
    found = out / "found"
    found.mkdir(parents=True, exist_ok=True)
    limits = (f"-max_total_time={seconds}", f"-timeout={SLOWEST_SECONDS}")
    sizes = (f"-rss_limit_mb={MOST_MEGABYTES}", f"-max_len={LONGEST_BYTES}")
    notes = (f"-dict={dictionary(name, out)}", f"-artifact_prefix={found}/{name}-")
    atheris.Setup(
        [sys.argv[0], str(corpus(name, out)), *limits, *sizes, *notes, "-print_final_stats=1"],
        lambda content: checked(target, content),
    )
    os.environ["PYTHONWARNINGS"] = "ignore"
    atheris.Fuzz()


def corpus(name: str, out: Path) -> Path:
    """Write what a target begins with, beside what was of interest in earlier runs."""
    from fuzz_targets import TARGETS

    folder = out / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (folder / f"seed{number}").write_bytes(seed)
    return folder


def dictionary(name: str, out: Path) -> Path:
    """Write the tokens of a target in libFuzzer's form."""
    from fuzz_targets import TARGETS

    path = out / f"{name}.dict"
    tokens = ("".join(f"\\x{byte:02x}" for byte in token) for token in TARGETS[name].tokens)
    path.write_text("".join(f'"{token}"\n' for token in tokens))
    return path


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
