"""Runs that go on from a state: to the bit, within rounding, and from one device to another."""

from __future__ import annotations

from gpu.differences import overall, plain_fp32, unequal
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.small_runs import Trained, train

STEPS, STOP = 4, 2
ROUNDING = 1e-2
"""Of the adapter's norm: sums in another order, and what Adam makes of them."""
RUN = {"max_train_steps": STEPS, "save_state": True, "save_every_n_steps": STOP}


def measure(setting: Setting, results: Results) -> None:
    """Stop at half the way, go on, and compare with runs in one go."""
    plain_fp32()
    with results.attempt("resumed with deterministic kernels"):
        whole, resumed = whole_and_resumed(setting, "exact", deterministic=True)
        error = unequal(resumed.tensors, whole.tensors)
        results.check("resumed with deterministic kernels: tensors that differ", error, 0.0)
    with results.attempt("resumed without"):
        whole, resumed = whole_and_resumed(setting, "free", mixed_precision="bf16")
        error = overall(resumed.tensors, whole.tensors)
        results.check("resumed in bf16 without them: adapter", error, ROUNDING)
    with results.attempt("from one device to another"):
        across(setting, results)


def whole_and_resumed(setting: Setting, name: str, **options: object) -> tuple[Trained, Trained]:
    """Train in one go, then again from the state at half the way."""
    given = {**RUN, "network_dropout": 0.1, **options}
    whole = train(setting, f"{name}-whole", setting.device, **given)
    resumed = train(setting, f"{name}-resumed", setting.device, resume=whole.state(STOP), **given)
    return whole, resumed


def across(setting: Setting, results: Results) -> None:
    """Go on on the processor from the card's state, and on the card from the processor's."""
    places = {"the card": str(setting.device), "the processor": "cpu"}
    whole = {
        name: train(setting, f"across-{device}-whole", device, **RUN)
        for name, device in places.items()
    }
    for begun, ended in (("the card", "the processor"), ("the processor", "the card")):
        name = f"across-from-{places[begun]}-to-{places[ended]}"
        state = whole[begun].state(STOP)
        resumed = train(setting, name, places[ended], resume=state, **RUN)
        error = overall(resumed.tensors, whole[ended].tensors)
        results.check(f"a state of {begun} goes on on {ended}: adapter", error, ROUNDING)


if __name__ == "__main__":
    run_part(measure)
