"""Ten steps of the real command on the card: against a processor's, and in other precisions."""

from __future__ import annotations

from safetensors.torch import load_file

from anima_pipe.demo import DEMO_TRANSFORMER
from gpu.differences import largest, overall, plain_fp32
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.small_runs import Trained, train

STEPS = 10
LOSSES_WITHIN = 1e-4
ADAPTER_WITHIN = 1e-2
"""Of the processor's run: sums in another order, and what Adam makes of them."""
PRECISIONS = {
    "bf16": ({"mixed_precision": "bf16"}, 3e-2),
    "fp16 with its scaler": ({"mixed_precision": "fp16"}, 1e-2),
    "a base in 8 bits": ({"fp8_base": True}, 3e-2),
    "bf16, checkpointed, base in 8 bits": (
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "fp8_base": True},
        4e-2,
    ),
}
"""What is trained with -> options, and how near its losses come to those of fp32."""


WHOLE = {"network_module": "none", "learning_rate": 1e-4}
PRECISIONS_OF_WHOLE = {
    # From weights that bf16 holds exactly, steps show once they add up to half of its own.
    "the model itself, bf16": ({"mixed_precision": "bf16"}, 6e-2),
    "the model itself, fp16 with its scaler": ({"mixed_precision": "fp16"}, 1e-2),
    "the model itself, bf16 throughout": (
        {"mixed_precision": "bf16", "full_bf16": True, "gradient_checkpointing": True},
        4e-2,
    ),
}
"""The same of a run that trains the model's own weights."""


def measure(setting: Setting, results: Results) -> None:
    """Train every kind of adapter, and the model itself, in fp32 and in other precisions."""
    plain_fp32()
    for kind, module in (("LoRA", "networks.lora_anima"), ("LoKr", "networks.lokr_anima")):
        with results.attempt(f"ten steps of {kind}"):
            against_processor(setting, results, kind, module)
    with results.attempt("ten steps in fp32"):
        whole = train(setting, "fp32", setting.device, max_train_steps=STEPS)
        for name, (options, within) in PRECISIONS.items():
            with results.attempt(f"ten steps: {name}"):
                against_fp32(setting, results, whole, name, options, within)
    with results.attempt("ten steps of the model itself"):
        whole = model_against_processor(setting, results)
        for name, (options, within) in PRECISIONS_OF_WHOLE.items():
            with results.attempt(f"ten steps: {name}"):
                against_fp32(setting, results, whole, name, {**WHOLE, **options}, within)


def model_against_processor(setting: Setting, results: Results) -> Trained:
    """Train the model itself in fp32 on both; return the run on the card."""
    own, processor = (
        train(setting, f"model-{name}", device, max_train_steps=STEPS, **WHOLE)
        for name, device in (("own", setting.device), ("processor", "cpu"))
    )
    base = load_file(DEMO_TRANSFORMER)
    # By whatever prefix the base has.
    start = {f"net.{name.removeprefix('net.')}": tensor.float() for name, tensor in base.items()}
    changes = [{n: t - start[n] for n, t in run.tensors.items()} for run in (own, processor)]
    error = largest(own.losses, processor.losses)
    results.check("ten steps of the model itself: losses as on a processor", error, LOSSES_WITHIN)
    error = overall(*changes)
    results.check("ten steps of the model itself: changes as on a processor", error, ADAPTER_WITHIN)
    return own


def against_processor(setting: Setting, results: Results, kind: str, module: str) -> None:
    """Take the same ten steps in fp32 on both."""
    own, processor = (
        train(setting, f"{kind}-{name}", device, max_train_steps=STEPS, network_module=module)
        for name, device in (("own", setting.device), ("processor", "cpu"))
    )
    error = largest(own.losses, processor.losses)
    results.check(f"ten steps of {kind}: losses as on a processor", error, LOSSES_WITHIN)
    error = overall(own.tensors, processor.tensors)
    results.check(f"ten steps of {kind}: adapter as on a processor", error, ADAPTER_WITHIN)


def against_fp32(
    setting: Setting,
    results: Results,
    whole: Trained,
    name: str,
    options: dict[str, object],
    within: float,
) -> None:
    """Take the ten steps with other options; compare those losses that were not passed over."""
    folder = name.replace(" ", "-").replace(",", "")
    run = train(setting, folder, setting.device, max_train_steps=STEPS, **options)
    skipped = int(str(run.summary["skipped_steps"]))
    results.check(f"ten steps, {name}: steps passed over", float(skipped), float(STEPS // 2))
    if skipped:
        # Steps that are passed over shift all that come after: the sum of what was learned differs.
        results.note(f"ten steps, {name}", f"{skipped} passed over while the scale was found")
        return
    results.check(
        f"ten steps, {name}: losses as in fp32", largest(run.losses, whole.losses), within
    )


if __name__ == "__main__":
    run_part(measure)
