"""Rules that hold between options."""

from __future__ import annotations

from collections.abc import Iterator

from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.network_args import network_arg_findings, network_arg_warnings
from anima_pipe.kohya.no_network import no_network_findings, trains_the_model
from anima_pipe.kohya.resolved import Resolved


def rule_findings(resolved: Resolved) -> Iterator[Finding]:
    """Yield what cannot hold together."""
    warmup = resolved.written.get("lr_warmup_steps")
    if _names_class(resolved) and warmup and warmup.value:
        yield Finding(
            place=warmup.place,
            problem=f"{warmup.spelling} does not reach the class that lr_scheduler_type names",
            remedy="remove it; give the class its own arguments in lr_scheduler_args",
        )
    elif warmup and refuses_warmup(resolved):
        yield Finding(
            place=warmup.place,
            problem=f"lr_scheduler {resolved.value('lr_scheduler')} takes no warmup, but "
            f"{warmup.spelling} is {warmup.given}",
            remedy="set lr_warmup_steps to 0, or lr_scheduler to constant_with_warmup",
        )
    yield from _schedule_free_findings(resolved)
    yield from network_arg_findings(resolved)
    yield from no_network_findings(resolved)
    schedule = resolved.written.get("lr_scheduler")
    if schedule and schedule.value == "adafactor" and not adafactor_sizes_steps(resolved):
        yield Finding(
            place=schedule.place,
            problem="lr_scheduler adafactor goes with an Adafactor that finds its own steps",
            remedy="set optimizer_type to Adafactor, without relative_step=False; or use "
            "constant_with_warmup",
        )


def refuses_warmup(resolved: Resolved) -> bool:
    """Tell whether a warmup is asked of one of Kohya's schedules that has none."""
    schedule, warmup = resolved.value("lr_scheduler"), resolved.value("lr_warmup_steps")
    return not _names_class(resolved) and schedule in WITHOUT_WARMUP and bool(warmup)


def adafactor_sizes_steps(resolved: Resolved) -> bool:
    """Tell whether Adafactor takes steps of its own size, as Kohya decides it.

    It is asked for by its arguments, or by the schedule named after it.
    """
    if str(resolved.value("optimizer_type")).lower() != "adafactor":
        return False
    arguments: dict[str, object] = resolved.value("optimizer_args") or {}
    by_schedule = resolved.value("lr_scheduler") == "adafactor"
    return bool(arguments.get("warmup_init") or arguments.get("relative_step", by_schedule))


def _schedule_free_findings(resolved: Resolved) -> Iterator[Finding]:
    """Optimizers that average the weights instead of lowering the rate bear no other schedule."""
    optimizer = resolved.written.get("optimizer_type")
    if optimizer is None or not str(optimizer.value).lower().endswith("schedulefree"):
        return
    schedule = (("lr_scheduler", "constant"), ("lr_warmup_steps", 0), ("lr_scheduler_type", ""))
    for name, needed in schedule:
        if (value := resolved.value(name)) != needed:
            yield Finding(
                place=resolved.given(name) or optimizer.place,
                problem=f"optimizer={optimizer.value} requires {name}={needed}, but it is {value}",
                remedy=f"set {name} to {needed}; warmup is an argument of AdamWScheduleFree and "
                "SGDScheduleFree (optimizer_args warmup_steps=100)",
            )


def _names_class(resolved: Resolved) -> bool:
    """Tell whether the schedule is a class, so that what Kohya's names take does not reach it."""
    written = resolved.written.get("lr_scheduler_type")
    return written is not None and bool(written.value)


def rule_warnings(resolved: Resolved) -> Iterator[str]:
    """Yield what is set without effect beside other options."""
    for item in resolved.written.values():
        if item.option.acts_with is None or item.value == item.option.default:
            continue
        other, values = item.option.acts_with
        current = resolved.value(other)
        # The seed shifts whatever it draws; Kohya's own spelling acts beside shift alone.
        if current not in values and item.spelling != SEED_SHIFT:
            yield f"{item} has no effect beside {other} = {current}"
    yield from _adafactor_warnings(resolved)
    yield from network_arg_warnings(resolved)
    if resolved.given("max_train_epochs") and resolved.given("max_train_steps"):
        steps = resolved.written["max_train_steps"]
        yield f"{steps} has no effect beside max_train_epochs"
    if resolved.written.get("no_metadata") and resolved.value("no_metadata"):
        for name, item in resolved.written.items():
            if name.startswith("metadata_") or name == "training_comment":
                yield f"{item} has no effect beside no_metadata"
    ratio = resolved.written.get("save_n_epoch_ratio")
    if ratio and ratio.value is not None and resolved.given("save_every_n_epochs"):
        yield f"{resolved.written['save_every_n_epochs']} has no effect beside save_n_epoch_ratio"
    if _names_class(resolved) and resolved.given("lr_scheduler"):
        yield f"{resolved.written['lr_scheduler']} has no effect beside lr_scheduler_type"
    for name, other in IDLE_BESIDE:
        if resolved.given(other) and resolved.given(name):
            yield f"{resolved.written[name]} has no effect beside {other}"
    if resolved.written.get("resume_allow") and not resolved.value("resume"):
        yield f"{resolved.written['resume_allow']} has no effect without resume"


def unset_rate_warnings(resolved: Resolved) -> Iterator[str]:
    """Yield that the learning rate is Kohya's default, which trains no adapter worth having.

    What a part of the options leaves open another part may say: this is for a run's all.
    """
    if any(map(resolved.given, ("learning_rate", "unet_lr"))) or adafactor_sizes_steps(resolved):
        return
    if trains_the_model(resolved):
        return
    kind = str(resolved.value("optimizer_type")).lower()
    rate = "1" if kind.startswith(("prodigy", "dadapt")) else "5e-5"
    yield (
        f"learning_rate is not set: {resolved.value('learning_rate'):g}, Kohya's default, is meant "
        f"for full training and hardly trains an adapter; set learning_rate = {rate}"
    )


def _adafactor_warnings(resolved: Resolved) -> Iterator[str]:
    """Yield what is idle beside an Adafactor with its own steps, or that it has none."""
    optimizer = resolved.written.get("optimizer_type")
    if optimizer is None or str(optimizer.value).lower() != "adafactor":
        return
    if adafactor_sizes_steps(resolved):
        for name in ("learning_rate", "unet_lr", "lr_scheduler", "lr_scheduler_type"):
            item = resolved.written.get(name)
            if item and item.value not in (None, "", "adafactor"):
                yield f"{item} has no effect beside Adafactor's relative_step"
    elif "relative_step" not in (resolved.value("optimizer_args") or {}):
        yield (
            f"{optimizer}: trained at learning_rate; Kohya's default lets Adafactor find its own "
            "steps, as relative_step=True in optimizer_args does"
        )


IDLE_BESIDE = (
    ("train_data_dir", "dataset_config"),
    ("reg_data_dir", "dataset_config"),
    ("in_json", "dataset_config"),
    ("reg_data_dir", "in_json"),
    ("save_format", "merge"),
    ("drop_norms", "merge"),
)
"""Options that say nothing where the second one is set, too."""

WITHOUT_WARMUP = ("constant", "adafactor")
"""Values of lr_scheduler beside which Kohya takes no lr_warmup_steps."""

SEED_SHIFT = "anima_flow_shift"
"""The seed's spelling of discrete_flow_shift."""
