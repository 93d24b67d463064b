from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tidemill.core.errors import ConfigError, Unsupported  # noqa: E402
from tidemill.train.torch.loader.arrays import ArraySource  # noqa: E402
from tidemill.train.torch.loader.config import LoaderConfig  # noqa: E402
from tidemill.train.torch.loader.loader import Loader  # noqa: E402
from tidemill.train.torch.loader.step import Step  # noqa: E402

MIB = 1 << 20
SIZES = [17, 5, 30, 1, 24, 30, 9, 30, 12, 22]


def config(workers: int = 0, **settings: Any) -> LoaderConfig:
    return LoaderConfig(**{"workers": workers, "shuffle_mib": 3, "cache_mib": 0, **settings})


def real(step: Step) -> list[int]:
    """This rank's rows of a step, without those that fill up."""
    return [row for micro in step.micro for row in micro.rows.tolist() if row >= 0]


def steps_of(numbered: Any, *, ranks: int = 1, epoch: int = 0, start: int = 0, **settings: Any) -> list[list[Step]]:
    """The steps of an epoch, each as its ranks see it."""
    source = settings.pop("source", None) or numbered(SIZES)
    loaders = [Loader(source, rank=rank, ranks=ranks, **{"config": config(), "batch_rows": 16, **settings}) for rank in range(ranks)]
    return [list(step) for step in zip(*(loader.steps(epoch, start) for loader in loaders), strict=True)]


def rows_of(steps: list[list[Step]]) -> list[list[int]]:
    """The rows of each step over all ranks, sorted."""
    return [sorted(row for one in step for row in real(one)) for step in steps]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    ranks=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    workers=st.sampled_from([0, 1, 3]),
    batch_rows=st.integers(1, 90),
    shuffle_mib=st.integers(1, 4),
    cache_mib=st.sampled_from([0, 100]),
    shuffle=st.booleans(),
)
def test_every_row_comes_exactly_once_an_epoch(
    numbered: Any,
    sizes: list[int],
    ranks: int,
    accumulate: int,
    workers: int,
    batch_rows: int,
    shuffle_mib: int,
    cache_mib: int,
    shuffle: bool,
) -> None:
    steps = steps_of(
        numbered,
        source=numbered(sizes, weighted=True),
        ranks=ranks,
        accumulate=accumulate,
        batch_rows=batch_rows,
        shuffle=shuffle,
        config=config(workers, shuffle_mib=shuffle_mib, cache_mib=cache_mib),
    )
    assert sorted(row for rows in rows_of(steps) for row in rows) == list(range(sum(sizes)))
    for number, (step, rows) in enumerate(zip(steps, rows_of(steps), strict=True)):
        assert len(rows) == (batch_rows if number < len(steps) - 1 else sum(sizes) - batch_rows * (len(steps) - 1))
        micro = [each for one in step for each in one.micro]
        assert len(micro) == ranks * accumulate
        share = [len(real(one)) for one in step]
        assert max(share) - min(share) <= 1
        for one in micro:
            assert len(one.rows) >= 1
            filled = one.rows < 0
            np.testing.assert_array_equal(one.inputs["features"].numpy()[:, 0], np.where(filled, 0, one.rows))
            np.testing.assert_array_equal(one.target.numpy(), np.where(filled, 0, one.rows))
            np.testing.assert_array_equal(one.weight.numpy(), np.where(filled, 0, 1 + one.rows % 3))
        total = sum(float(one.weight.sum()) for one in micro)
        assert {(one.number, one.rows, one.total) for one in step} == {(number, len(rows), total)}


@pytest.mark.parametrize("shuffle_mib", [1, 3, 100])
@pytest.mark.parametrize("how", [{"batch_rows": 16}, {"batch_rows": None, "batch_tokens": 40}])
def test_steps_hold_the_same_rows_for_any_number_of_ranks_workers_and_micro_batches(
    numbered: Any, shuffle_mib: int, how: dict[str, Any]
) -> None:
    lengths = [1 + (7 * row) % 13 for row in range(sum(SIZES))]
    seen = []
    for ranks, workers, accumulate, cache_mib in ((1, 0, 1, 0), (2, 2, 1, 0), (4, 1, 3, 100), (8, 3, 2, 0)):
        steps = steps_of(
            numbered,
            source=numbered(SIZES, lengths=lengths, weighted=True),
            ranks=ranks,
            accumulate=accumulate,
            epoch=2,
            config=config(workers, shuffle_mib=shuffle_mib, cache_mib=cache_mib),
            **how,
        )
        seen.append((rows_of(steps), [step[0].total for step in steps]))
    assert all(one == seen[0] for one in seen)
    assert rows_of(steps_of(numbered, epoch=1)) != rows_of(steps_of(numbered, epoch=2))
    assert rows_of(steps_of(numbered, seed=1)) != rows_of(steps_of(numbered, seed=2))


@settings(max_examples=60)
@given(
    start=st.integers(0, 40),
    ranks=st.integers(1, 3),
    workers=st.sampled_from([0, 2]),
    weighted=st.booleans(),
    cache_mib=st.sampled_from([0, 100]),
    batch=st.sampled_from([{"batch_rows": 5}, {"batch_rows": 70}, {"batch_rows": None, "batch_tokens": 30}]),
)
def test_a_pass_from_any_step_on_is_the_tail_of_the_whole_pass(
    numbered: Any, start: int, ranks: int, workers: int, weighted: bool, cache_mib: int, batch: dict[str, int | None]
) -> None:
    def passed(start: int) -> list[list[Step]]:
        source = numbered(SIZES, weighted=weighted, lengths=[1 + row % 9 for row in range(sum(SIZES))])
        return steps_of(numbered, source=source, ranks=ranks, epoch=3, start=start, config=config(workers, cache_mib=cache_mib), **batch)

    whole, tail = passed(0), passed(start)
    assert len(tail) == max(0, len(whole) - start)
    for expected, step in zip(whole[start:], tail, strict=True):
        for rank_expected, one in zip(expected, step, strict=True):
            assert (one.number, one.total, one.rows, one.tokens) == (
                rank_expected.number, rank_expected.total, rank_expected.rows, rank_expected.tokens,
            )  # fmt: skip
            for micro_expected, micro in zip(rank_expected.micro, one.micro, strict=True):
                np.testing.assert_array_equal(micro_expected.rows, micro.rows)
                for name, value in micro_expected.inputs.items():
                    assert value.equal(micro.inputs[name])


def test_a_late_start_reads_none_of_what_lies_before_it(numbered: Any) -> None:
    source = numbered([100] * 30)
    loader = Loader(source, batch_rows=50, config=config())
    assert len(list(loader.steps(0, 55))) == 5
    # A window is three blocks: the last 250 rows are in the last of them.
    assert len(source.reads) == 3
    assert sum(rows for _, rows in source.reads) == 250


def test_a_rank_makes_ready_only_its_own_rows_and_reads_few_other_blocks(numbered: Any) -> None:
    for rank in range(4):
        source = numbered([500] * 64)
        for step in Loader(source, batch_rows=400, rank=rank, ranks=4, config=config(shuffle_mib=16)).steps(0):
            assert len(real(step)) == 100
        assert sum(rows for _, rows in source.reads) == 64 * 500 // 4
        assert len({block for block, _ in source.reads}) == len(source.reads) <= 64 // 2


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_bounded_by_two_windows_of_the_ranks_rows(numbered: Any, workers: int) -> None:
    rows, width = 1024, 256  # a MiB a block
    for ranks in (1, 4):
        source = numbered([rows] * 48, width=width)
        loader = Loader(source, batch_rows=256, ranks=ranks, config=config(workers, shuffle_mib=6, prefetch=2))
        tracemalloc.start()
        steps = sum(1 for _ in loader.steps(0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert steps == 48 * rows // 256
        # Two windows, what prefetch and the workers hold (five steps, two blocks made), and a little.
        assert peak < (2 * 6 / ranks + 5 * 0.25 + 2 * 2 + 1) * MIB, f"{peak / MIB:.1f} MiB on one of {ranks} ranks"


def test_blocks_that_fit_stay_for_the_next_epoch(numbered: Any) -> None:
    source = numbered(SIZES)
    loader = Loader(source, batch_rows=16, config=config(2, cache_mib=len(SIZES)))
    first, second = ([real(step) for step in loader.steps(epoch)] for epoch in (0, 1))
    assert sorted(source.reads) == sorted((block, size) for block, size in enumerate(SIZES))
    assert first != second
    source = numbered(SIZES)
    again = Loader(source, batch_rows=16, config=config(2, cache_mib=len(SIZES) - 1))
    assert [[real(step) for step in again.steps(epoch)] for epoch in (0, 1)] == [first, second]
    assert len(source.reads) == 2 * len(SIZES)


def test_the_position_is_that_of_the_next_step_and_plain(numbered: Any) -> None:
    loader = Loader(numbered(SIZES), batch_rows=50, config=config(2))
    assert loader.num_steps(0) == 4
    seen = [loader.position for _ in loader.steps(0)]
    assert [(at["epoch"], at["step"]) for at in seen] == [(0, 1), (0, 2), (0, 3), (1, 0)]
    assert all(type(value) in (int, str) for value in seen[0].values())
    assert Loader(numbered(SIZES), batch_rows=50, ranks=4, accumulate=2, config=config()).resume(seen[1]) == (0, 2)


@pytest.mark.parametrize("other", [{"batch_rows": 51}, {"seed": 1}, {"config": LoaderConfig(shuffle_mib=4)}])
def test_a_position_in_another_order_is_refused(numbered: Any, other: dict[str, Any]) -> None:
    position = Loader(numbered(SIZES), batch_rows=50, config=config()).position
    with pytest.raises(ConfigError, match="must be one in the same order"):
        Loader(numbered(SIZES), **{"batch_rows": 50, "config": config(), **other}).resume(position)


def test_static_steps_have_one_shape(numbered: Any) -> None:
    source = numbered(SIZES, lengths=[1 + row % 9 for row in range(sum(SIZES))])
    steps = steps_of(numbered, source=source, batch_rows=50, ranks=3, accumulate=2, static=True)
    shapes = {tuple(micro.inputs["input_ids"].shape) for step in steps for one in step for micro in one.micro}
    assert shapes == {(9, 9)}  # 50 rows over 3 ranks and 2 micro-batches, 9 tokens at most
    assert sum(len(rows) for rows in rows_of(steps)) == sum(SIZES)
    for step in steps:
        micro = [each for one in step for each in one.micro]
        counted = [len(one.rows) if one.weight is None else float(one.weight.sum()) for one in micro]
        assert step[0].total == sum(counted) == len([row for one in micro for row in one.rows if row >= 0])


@pytest.mark.parametrize("workers", [0, 3])
def test_an_error_of_a_worker_reaches_the_loop_and_no_thread_stays(numbered: Any, workers: int) -> None:
    before = threading.active_count()
    loader = Loader(numbered(SIZES, fails_at=90), batch_rows=16, config=config(workers))
    with pytest.raises(RuntimeError, match="row 90 is broken"):
        list(loader.steps(0))
    assert threading.active_count() == before


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_a_pass_that_is_left_early_leaves_nothing_behind(numbered: Any, cache_mib: int) -> None:
    before = threading.active_count()
    source = numbered(SIZES)
    loader = Loader(source, batch_rows=4, config=config(2, cache_mib=cache_mib))
    steps = loader.steps(0)
    assert isinstance(steps, Iterator)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert sorted(row for step in loader.steps(0) for row in real(step)) == list(range(sum(SIZES)))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({}, ConfigError, "needs one of batch_size and batch_tokens"),
        ({"batch_rows": 1, "batch_tokens": 1}, ConfigError, "needs one of batch_size and batch_tokens"),
        ({"batch_rows": 0}, ConfigError, "train.batch_size: must be at least 1"),
        ({"batch_tokens": 10}, ConfigError, "needs texts"),
        ({"batch_tokens": 10, "static": True}, Unsupported, "use batch_size"),
        ({"batch_rows": 1, "rank": 2, "ranks": 2}, ConfigError, "rank must be in 0..1, got 2"),
        ({"batch_rows": 1, "accumulate": 0}, ConfigError, "train.accumulate"),
    ],
)
def test_wrong_settings_are_named(numbered: Any, settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Loader(numbered(SIZES), config=config(), **settings)


def test_threads_end_where_nothing_is_left_to_be_read(numbered: Any) -> None:
    def helped(loader: Loader, epoch: int) -> bool:
        threads = [any(thread.name.startswith("tidemill-loader") for thread in threading.enumerate()) for _ in loader.steps(epoch)]
        return any(threads)

    kept = Loader(numbered(SIZES), batch_rows=16, config=LoaderConfig())
    assert [helped(kept, epoch) for epoch in (0, 1)] == [True, torch.cuda.is_available()]
    read_again = Loader(numbered(SIZES), batch_rows=16, config=LoaderConfig(cache_mib=0))
    assert [helped(read_again, epoch) for epoch in (0, 1)] == [True, True]
    array = ArraySource({"features": np.ones((40, 2), np.float32)}, np.zeros(40))
    assert helped(Loader(array, batch_rows=16, config=LoaderConfig()), 0) == torch.cuda.is_available()
    assert helped(Loader(array, batch_rows=16, config=LoaderConfig(workers=1)), 0)


def test_resident_rows_are_the_same_with_threads_and_without() -> None:
    array = ArraySource({"features": np.arange(80, dtype=np.float32).reshape(40, 2)}, np.arange(40.0))
    made = [
        [(step.number, step.rows, *(micro.rows.tolist() for micro in step.micro)) for step in Loader(
            array, batch_rows=16, accumulate=2, config=LoaderConfig(workers=workers)
        ).steps(3, start)]
        for workers, start in ((0, 0), (3, 0), (0, 1))
    ]  # fmt: skip
    assert made[0] == made[1]
    assert made[0][1:] == made[2]
    assert sorted(row for step in made[0] for micro in step[2:] for row in micro) == list(range(40))
