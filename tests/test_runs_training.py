"""Training as a call of the library, on a few of the demo's pictures and its tiny model."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import pytest
import torch
from commands import anima_pipe, files_in, run_apart
from safetensors.torch import load_file
from training_calls import assert_refused, into, metadata, trained

from anima_pipe import runs
from anima_pipe.errors import ConfigError, PipeError

STEPS: Final = 3

TRAINS: Final = """
import json, sys
from pathlib import Path

from anima_pipe import demo, runs

pictures, cache_folder, folder = map(Path, sys.argv[1:])
buckets = runs.BucketRules(
    resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256, bucket_reso_steps=32
)
subset = runs.SubsetConfig(image_dir=pictures)
cache = runs.CacheSettings(folder=cache_folder, device="cpu")
settings = runs.TrainSettings(
    data=runs.DataSettings(
        datasets=(runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=2),),
        cache=cache,
        latents=runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE, workers=0),
        text=runs.TextSettings(
            cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER
        ),
    ),
    model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
    adapter=runs.AdapterSettings(network_dim=4, network_alpha=1),
    save=runs.SaveConfig(folder=folder, name="fox"),
    learning_rate=2e-3,
    length=runs.LengthSettings(max_train_steps=2),
    logs=runs.LogSettings(kinds=()),
    seed=1,
    device="cpu",
)
summary = runs.train(settings)
print(json.dumps({"output": summary.output, "modules": sorted(sys.modules)}))
"""

COMMAND_LINE: Final = ("click", "stages", "anima_pipe.cli", "anima_pipe.kohya")


# Beside the command line


def test_a_training_by_call_knows_no_command_line_and_trains_what_the_command_does(
    settings: runs.TrainSettings, dataset: Path, pictures: Path, tmp_path: Path
) -> None:
    cache = settings.data.cache.folder

    program = (sys.executable, "-c", TRAINS, pictures, cache, tmp_path / "called")
    told = json.loads(run_apart(*program).ok().printed)
    names = {"dataset_config": dataset, "cache_dir": cache, "output_dir": tmp_path / "typed"}
    anima_pipe("train", **names).ok()

    modules: list[str] = told["modules"]
    assert [m for m in modules if any(f"{m}.".startswith(f"{c}.") for c in COMMAND_LINE)] == []
    called, typed = Path(told["output"]), tmp_path / "typed" / "fox.safetensors"
    of_call, of_command = load_file(called), load_file(typed)
    assert of_call.keys() == of_command.keys()
    assert all(torch.equal(of_call[name], of_command[name]) for name in of_call)
    facts, others = metadata(called), metadata(typed)
    # A hash of all the facts, of which the command line knows more.
    both = (facts.keys() & others.keys()) - {"ss_session_id"}
    assert {name: facts[name] for name in both} == {name: others[name] for name in both}
    assert {"ss_seed", "ss_network_alpha", "ss_optimizer", "sshs_model_hash"} <= both


# The caller's own hooks


class Watcher:
    """Notes when it is asked and acts, and what it finds then.

    Args:
        look: What is noted whenever it acts.
        due: Whether it acts.
    """

    def __init__(
        self,
        look: Callable[[], object] = lambda: None,
        due: Callable[[runs.Moment], bool] = lambda _moment: True,
    ) -> None:
        self.look, self.is_due = look, due
        self.asked: list[runs.Moment] = []
        self.seen: dict[int, object] = {}
        self.closed = 0

    def due(self, moment: runs.Moment) -> bool:
        self.asked.append(moment)
        return self.is_due(moment)

    def at(self, moment: runs.Moment) -> None:
        self.seen[moment.step] = self.look()

    def close(self) -> None:
        self.closed += 1


class Breaking(Watcher):
    """Raises behind a step."""

    def __init__(self, step: int) -> None:
        super().__init__(due=lambda moment: moment.step == step)

    def at(self, moment: runs.Moment) -> None:
        raise RuntimeError(f"broken at step {moment.step}")


def test_a_hook_of_ones_own_is_asked_before_the_first_step_and_behind_each(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    hook = Watcher(due=lambda moment: moment.step == 2)

    runs.train(into(tmp_path, settings), [hook])

    assert [moment.step for moment in hook.asked] == [0, 1, 2, 3]
    assert [moment.after_step for moment in hook.asked] == [False, True, True, True]
    assert [moment.is_last for moment in hook.asked] == [False, False, False, True]
    assert hook.seen.keys() == {2}
    assert hook.closed == 1


def test_a_hook_acts_once_what_its_step_saves_is_there(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    run = into(
        tmp_path,
        settings,
        save=replace(settings.save, every_n_steps=1),
        states=runs.StateSettings(with_saves=True, at_end=True),
    )
    hook = Watcher(lambda: {path.name for path in tmp_path.glob("[!.]*")})

    runs.train(run, [hook])

    saved = {
        step: {f"fox-step{step:08d}.safetensors", f"fox-step{step:08d}-state"} for step in (1, 2)
    }
    assert hook.seen[0] == set()
    assert hook.seen[1] == saved[1]
    assert hook.seen[2] == saved[1] | saved[2]
    assert {"fox.safetensors", "fox-state"} <= cast("set[str]", hook.seen[3])


def test_a_hook_that_raises_ends_the_run_with_its_error_and_the_state_saved(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    hook, breaking = Watcher(), Breaking(2)

    with pytest.raises(RuntimeError, match="broken at step 2"):
        runs.train(into(tmp_path, settings), [hook, breaking])

    assert (hook.closed, breaking.closed) == (1, 1)
    (state,) = tmp_path.iterdir()
    assert state.name == "fox-step00000002-state"
    # What is behind that state is trained as if nothing had happened.
    resumed = runs.train(
        into(tmp_path, settings, states=runs.StateSettings(resume=state)),
    )
    assert trained(resumed) == trained(runs.train(into(tmp_path / "whole", settings)))


class Weights(Watcher):
    """Looks at the weights of the adapter on a model."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__(self.weights, due=lambda moment: moment.is_last)
        self.base = base

    def weights(self) -> dict[str, torch.Tensor]:
        named = self.base.named_parameters()
        return {n: value.detach().clone() for n, value in named if n.endswith((".down", ".up"))}


class WeightsInTraining(Weights):
    """Is shown none but those that are trained."""

    reads_weights = False


def test_a_hook_sees_the_weights_that_are_saved_unless_it_reads_none(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(settings.model, "cpu")
    averaged, trains = Weights(base), WeightsInTraining(base)
    optimizer = runs.OptimizerConfig(optimizer_type="AdamWScheduleFree")

    runs.train(into(tmp_path, settings, optimizer=optimizer), [averaged, trains], base=base)

    file = load_file(tmp_path / "fox.safetensors")
    saved = sorted(float(value.norm()) for name, value in file.items() if ".lora_" in name)
    seen = averaged.seen[STEPS], trains.seen[STEPS]
    of_average, in_training = (
        sorted(float(value.norm()) for value in cast("dict[str, torch.Tensor]", found).values())
        for found in seen
    )
    assert of_average == pytest.approx(saved, rel=1e-6)
    assert in_training != pytest.approx(saved, rel=1e-3)


# Stopping


def test_a_run_in_a_thread_of_its_own_is_stopped_from_another_and_leaves_signals_alone(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    stop, stepped = runs.StopRequest(), threading.Event()
    hook = Watcher(lambda: stepped.set() or [signal.getsignal(number) for number in numbers])
    hook.is_due = lambda moment: moment.after_step
    run = into(tmp_path, settings, length=runs.LengthSettings(max_train_steps=10**6))
    ended: list[runs.TrainSummary] = []

    thread = threading.Thread(target=lambda: ended.append(runs.train(run, [hook], stop=stop)))
    thread.start()
    assert stepped.wait(300)
    stop.ask()
    thread.join(300)

    (summary,) = ended
    assert 1 <= summary.steps < 10**6
    assert summary.output is None
    assert summary.state_dir == str(tmp_path / f"fox-step{summary.steps:08d}-state")
    assert Path(summary.state_dir).is_dir()
    assert all(found == before for found in hook.seen.values())


# Several runs in one process


def test_runs_of_several_precisions_and_one_that_fails_leave_nothing_to_the_next(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    in_bf16 = replace(settings.model, mixed_precision="bf16")

    first = trained(runs.train(into(tmp_path / "1", settings)))
    halved = trained(runs.train(into(tmp_path / "2", settings, model=in_bf16)))
    with pytest.raises(RuntimeError, match="broken"):
        runs.train(into(tmp_path / "3", settings, model=in_bf16), [Breaking(1)])
    last = trained(runs.train(into(tmp_path / "4", settings)))

    assert last == first
    assert halved != first


def test_a_run_that_is_stopped_and_resumed_in_one_process_ends_with_the_same_bytes(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    stop = runs.StopRequest()
    asking = Watcher(stop.ask, due=lambda moment: moment.step == 1)

    stopped = runs.train(into(tmp_path, settings, seed=None), [asking], stop=stop)
    assert stopped.state_dir is not None
    state = runs.StateSettings(resume=Path(stopped.state_dir))
    # The seed was drawn, and is the state's.
    resumed = runs.train(into(tmp_path, settings, seed=None, states=state))

    seed = int(metadata(tmp_path / "fox.safetensors")["ss_seed"])
    assert (stopped.steps, resumed.steps) == (2, STEPS)
    assert trained(resumed) == trained(runs.train(into(tmp_path / "whole", settings, seed=seed)))


def adapters_on(model: torch.nn.Module) -> list[str]:
    return [name for name, _module in model.named_modules() if "delta" in name]


def test_a_shared_base_is_as_it_was_whatever_ends_a_run(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(settings.model, "cpu")
    untouched = {name: value.clone() for name, value in base.state_dict().items()}
    lokr = replace(settings, adapter=runs.AdapterSettings(kind="lokr", network_dim=4))
    alone = trained(runs.train(into(tmp_path / "alone", settings)))
    stop = runs.StopRequest()
    stop.ask()
    state = runs.train(into(tmp_path / "state", settings), stop=stop).state_dir
    assert state is not None
    nothing = {"include_patterns": "[r'nowhere']"}
    failing: tuple[tuple[str, dict[str, Any], list[runs.Hook]], ...] = (
        ("nowhere", {"adapter": runs.AdapterSettings(network_args=nothing)}, []),
        ("another run|was made with", {"states": runs.StateSettings(resume=Path(state))}, []),
        ("broken at step 1", {}, [Breaking(1)]),
    )

    runs.train(into(tmp_path / "lokr", lokr), base=base)
    assert adapters_on(base) == []
    for words, changes, hooks in failing:
        with pytest.raises(Exception, match=words):
            runs.train(into(tmp_path / words, lokr, **changes), hooks, base=base)
        assert adapters_on(base) == []

    assert trained(runs.train(into(tmp_path / "shared", settings), base=base)) == alone
    kept = base.state_dict()
    assert kept.keys() == untouched.keys()
    assert all(torch.equal(kept[name], value) for name, value in untouched.items())


def test_a_base_that_is_kept_otherwise_than_the_run_wants_is_refused(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(replace(settings.model, mixed_precision="bf16"), "cpu")

    with pytest.raises(ConfigError) as raised:
        runs.train(into(tmp_path, settings), base=base)

    assert raised.value.problem == "the base is kept in torch.bfloat16, but mixed_precision is no"
    assert raised.value.remedy
    assert files_in(tmp_path) == set()


def test_a_whole_base_is_refused_where_the_launch_shards_it(
    settings: runs.TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = runs.load_base(settings.model, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    with pytest.raises(ConfigError, match="the base is given whole, but FSDP is asked for"):
        runs.train(into(tmp_path, settings), base=base)


# Errors


def test_an_error_before_the_first_step_leaves_no_file_of_the_run(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    logs = runs.LogSettings(folder=tmp_path / "logs")
    nowhere = (replace(settings.data.datasets[0].subsets[0], image_dir=tmp_path / "nowhere"),)
    datasets = (replace(settings.data.datasets[0], subsets=nowhere),)
    failing: tuple[dict[str, Any], ...] = (
        {"model": replace(settings.model, transformer=tmp_path / "nowhere")},
        {"data": replace(settings.data, datasets=datasets)},
        {"adapter": runs.AdapterSettings(network_args={"include_patterns": "[r'nowhere']"})},
        {"states": runs.StateSettings(resume=tmp_path / "nowhere")},
        {"metadata": runs.MetadataSettings(thumbnail=str(tmp_path / "nowhere.png"))},
    )

    for changes in failing:
        with pytest.raises(PipeError, match="nowhere"):
            runs.train(into(tmp_path / "out", settings, logs=logs, **changes))
        assert files_in(tmp_path) == set()
        assert not (tmp_path / "logs").is_dir() or list((tmp_path / "logs").iterdir()) == []


def test_an_adapter_that_the_files_style_cannot_hold_begins_no_log(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    logs = runs.LogSettings(folder=tmp_path / "logs")
    adapter = runs.AdapterSettings(kind="lokr", network_dim=4)
    save = replace(settings.save, style="diffusers")

    assert_refused(
        lambda: runs.train(into(tmp_path, settings, adapter=adapter, save=save, logs=logs)),
        "diffusers",
    )

    assert files_in(tmp_path) == set()
