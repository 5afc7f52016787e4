"""What a training step is given: windows of batches, padded texts, shares of processes."""

import itertools
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anima_pipe.dataset.batches import Batches, pad_texts
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.records import TextCondition
from anima_pipe.shards import LatentWriter, MaskWriter, TextWriter, open_cache

WIDTH = 8


def condition(qwen: int, t5: int, value: float = 1.0) -> TextCondition:
    ids = torch.full((t5,), 5, dtype=torch.int32)
    ids[-1] = 1
    return TextCondition(torch.full((qwen, WIDTH), value), ids)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with LatentWriter(folder, "a" * 32, "fp16", "vae") as latents:
        for number in range(10):
            latents.add(f"{number:032x}", torch.full((16, 4, 6), number / 10), {})
    with TextWriter(folder, "b" * 32, "fp16", "qwen") as texts:
        texts.add(EMPTY_CAPTION, condition(0, 1), {})
        for number in range(10):
            texts.add(f"{number:031x}t", condition(number + 1, number + 3, number / 10), {})
    return open_cache(folder)


def plan_of(count: int, batch_size: int, seed: int = 0) -> Plan:
    members = [
        PlannedSample(
            name=str(number),
            latents=(f"{number:032x}",),
            texts=(f"{number:031x}t",),
            group=(0, 48, 32),
            batch_size=batch_size,
            repeats=1,
            dropout_rate=0.0,
            dropout_every_n_epochs=0,
        )
        for number in range(count)
    ]
    return Plan(samples=tuple(members), seed=seed)


def take(batches: Batches, count: int, start: int = 0):
    return list(itertools.islice(batches.starting_at(start), count))


def names(window):
    return [share.batch.names for share in window.micro_batches]


def test_a_batch_pairs_each_latent_with_its_own_text(cache):
    window = take(Batches(plan=plan_of(8, 4), cache=cache), 1)[0]
    batch = window.micro_batches[0].batch
    assert batch.latents.shape == (4, 16, 4, 6)
    for row, name in enumerate(batch.names):
        value = torch.tensor(int(name) / 10).half()
        assert (batch.latents[row] == value).all()
        real = batch.text.qwen_mask[row]
        assert real.sum() == int(name) + 1
        assert (batch.text.qwen_hidden[row][real] == value).all()


def test_a_batch_brings_the_masks_of_its_samples_and_ones_for_those_without(tmp_path, cache):
    halves = {f"{number:031x}m": torch.full((4, 6), number / 2) for number in range(2)}
    with MaskWriter(tmp_path) as masks:
        for key, mask in halves.items():
            masks.add(key, mask, {})
    masked = replace(cache, masks=open_cache(tmp_path).masks)
    plain = plan_of(3, 3)
    members = tuple(
        replace(sample, masks=(key,)) for sample, key in zip(plain.samples, halves, strict=False)
    )
    plan = replace(plain, samples=(*members, plain.samples[2]))
    (share,) = take(Batches(plan=plan, cache=masked), 1)[0].micro_batches
    assert share.batch.masks is not None
    values = [mask.unique().tolist() for mask in share.batch.masks]
    found = dict(zip(share.batch.names, values, strict=True))
    assert found == {"0": [0.0], "1": [0.5], "2": [1.0]}
    assert take(Batches(plan=plain, cache=masked), 1)[0].micro_batches[0].batch.masks is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_padding_is_zero_masked_and_no_longer_than_the_longest(lengths):
    text = pad_texts([condition(qwen, t5) for qwen, t5 in lengths])
    assert text.qwen_hidden.shape[1] == max(1, *(qwen for qwen, _ in lengths))
    assert text.t5_ids.shape[1] == max(t5 for _, t5 in lengths)
    assert text.qwen_mask.sum(1).tolist() == [qwen for qwen, _ in lengths]
    assert text.t5_mask.sum(1).tolist() == [t5 for _, t5 in lengths]
    assert (text.qwen_hidden[~text.qwen_mask] == 0).all()
    assert (text.t5_ids[~text.t5_mask] == 0).all()


def test_windows_do_not_cross_epochs_and_the_last_says_so(cache):
    batches = Batches(plan=plan_of(10, 2), cache=cache, accumulation=2)
    assert batches.windows_per_epoch() == 3
    windows = take(batches, 7)
    assert [w.epoch for w in windows] == [0, 0, 0, 1, 1, 1, 2]
    assert [w.ends_epoch for w in windows] == [False, False, True] * 2 + [False]
    assert [len(w.micro_batches) for w in windows[:3]] == [2, 2, 1]
    assert [w.samples for w in windows[:3]] == [4, 4, 2]


def lines_run(act) -> int:
    """How many lines of Python an act executes, in all that it calls."""
    count = 0

    def trace(_frame, event, _argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def test_a_window_costs_the_same_whatever_the_number_of_samples(cache):
    def cost(samples: int) -> list[int]:
        (sample,) = plan_of(1, 2).samples
        plan = Plan(samples=(sample,) * samples, seed=0)
        windows = Batches(plan=plan, cache=cache, accumulation=2).starting_at(3)
        # With the first one comes the order of its epoch.
        next(windows)
        return [lines_run(lambda: next(windows)) for _ in range(3)]

    assert cost(1_000) == cost(100_000)


@settings(max_examples=25)
@given(st.integers(1, 10), st.integers(1, 4), st.integers(1, 3), st.integers(0, 12))
def test_starting_later_continues_with_the_very_next_batch(count, size, accumulation, start):
    plan = plan_of(count, size)
    batches = Batches(plan=plan, cache=_Nothing(), accumulation=accumulation)
    whole, rest = take(batches, start + 4), take(batches, 4, start)
    assert [names(window) for window in whole[start:]] == [names(window) for window in rest]


@settings(max_examples=25)
@given(st.integers(1, 10), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_processes_share_the_batches_and_their_weights_sum_to_the_mean(
    count, size, accumulation, processes
):
    plan = plan_of(count, size)
    mine = [
        Batches(
            plan=plan, cache=_Nothing(), accumulation=accumulation, processes=processes, rank=rank
        )
        for rank in range(processes)
    ]
    seen = []
    for shares in zip(
        *(take(batches, mine[0].windows_per_epoch()) for batches in mine), strict=True
    ):
        assert len({len(window.micro_batches) for window in shares}) == 1
        real = [share for window in shares for share in window.micro_batches if share.weight > 0]
        seen += [name for share in real for name in share.batch.names]
        # Averaged over the processes, each batch counts one over the window's batches.
        weights = [share.weight / processes for share in real]
        assert weights == pytest.approx([1 / len(real)] * len(real))
    assert sorted(seen) == sorted(str(number) for number in range(count))


class _Nothing:
    """A cache whose contents do not matter, so that only the order is looked at."""

    def __init__(self) -> None:
        self.latents = self.text = self

    def __getitem__(self, key: str):
        empty = torch.zeros(1, WIDTH)
        return condition(1, 1) if key.endswith("t") or key == EMPTY_CAPTION else empty

    def stacked(self, keys: list[str]):
        return torch.stack([self[key] for key in keys])
