"""The converter under the name that the seed gave it.

    python tools/convert_anima_root_to_kohya.py --input old.toml --output_dir DIR

is `anima-pipe convert-config old.toml` with the same options.
"""

import sys
from pathlib import Path


def main() -> None:
    """Find the package in the repository, installed or not, and convert."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from anima_pipe.cli.convert_config import command

    command()


if __name__ == "__main__":
    main()
