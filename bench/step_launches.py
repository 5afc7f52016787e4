"""Count the operations of a training pass on the released structure, by kind of adapter.

    python bench/step_launches.py [--places 40]

Each is about one kernel on a GPU; see tests/launches.py, whose tests hold the figures. With
--places the lines of the library that ask for most of those of a LoRA are named.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from launches import Launches, Pass, training_pass

KINDS = {
    "lora": ("lora", {}),
    "lora, checkpointed": ("lora", {"checkpointed": True}),
    "lora without norms": ("lora", {"train_norm": False}),
    "lokr, thin factor": ("lokr", {"network_dim": 2}),
    "lokr, whole factors": ("lokr", {"lokr_full_matrix": True}),
    "loha": ("loha", {}),
    "dora": ("lora", {"dora": True}),
    "dora by columns": ("lora", {"dora": True, "wd_on_output": False}),
    "tlora": ("tlora", {}),
    "pissa": ("lora", {"pissa": True}),
}
"""What is measured -> kind and arguments."""


def main() -> None:
    """Count all kinds, and print them beside LoRA."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, default=0)
    options = parser.parse_args()
    print(f"{'':<22}{'forward':>9}{'backward':>10}{'both':>8}{'/ lora':>8}")
    of_lora = 0
    for name, (kind, arguments) in KINDS.items():
        forward, backward = counted(training_pass(kind, **arguments))
        both = forward.total() + backward.total()
        of_lora = of_lora or both
        counts = f"{forward.total():>9}{backward.total():>10}{both:>8}{both / of_lora:>8.2f}"
        print(f"{name:<22}{counts}")
    if options.places:
        for counts in counted(training_pass(), placed=True):
            print()
            for place, count in counts.most_common(options.places):
                print(f"{count:>6}  {place}")


def counted(taken: Pass, *, placed: bool = False) -> tuple[Counter[str], Counter[str]]:
    """Return the operations of a forward and a backward pass that are not the first."""
    taken.run().backward()
    for parameter in taken.adapter.parameters():
        parameter.grad = None
    with Launches(placed=placed) as forward:
        loss = taken.run()
    with Launches(placed=placed) as backward:
        loss.backward()
    return forward.by_place, backward.by_place


if __name__ == "__main__":
    main()
