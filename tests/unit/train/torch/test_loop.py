from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from tidemill.core.errors import DataError  # noqa: E402
from tidemill.core.events import Event  # noqa: E402
from tidemill.train.torch.config import ScheduleConfig  # noqa: E402
from tidemill.train.torch.loop import Loop  # noqa: E402
from tidemill.train.torch.optim import rate  # noqa: E402

Made = Callable[..., Loop]
Rows = Callable[..., tuple[np.ndarray, np.ndarray]]


def weights(trained: Loop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.weights.tensors().items()}


def far(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between weights, by the largest of them."""
    largest = max(float(value.abs().max()) for value in first.values())
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first) / largest


def test_a_network_learns(loop: Made, rows: Rows) -> None:
    told: list[dict[str, float]] = []
    made = loop(
        {"epochs": 12, "batch_size": 32, "optimizer": {"learning_rate": 0.02}},
        train=rows(1024), valid=rows(512, seed=1), on_round=lambda number, measured: told.append({"round": number, **measured}) or False,
    )  # fmt: skip
    assert made.run().step == 12 * 32
    assert [line["round"] for line in told] == list(range(12))
    assert next(iter(told[0])) == "round"
    assert list(told[0])[1] == "valid_log_loss"
    assert told[-1]["valid_log_loss"] < 0.25 < 0.35 < told[0]["valid_log_loss"]
    assert told[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)


def test_the_loop_is_a_plain_one(loop: Made, rows: Rows) -> None:
    """Against the loop that anyone would write, on the same rows in the same order."""
    x_NF, y_N = rows(256)
    made = loop({"epochs": 2, "batch_size": 48, "clip": 0.5}, train=(x_NF, y_N))
    plain = made.parallel.parts[0].__class__(4)
    plain.load_state_dict({name: value.clone() for name, value in made.parallel.parts[0].state_dict().items()})
    optimizer = torch.optim.AdamW(
        [
            {"params": [plain.first.weight, plain.head.weight], "weight_decay": 0.01},
            {"params": [plain.first.bias, plain.head.bias], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    share, number = rate(ScheduleConfig(warmup=0.05), steps=12), 0
    for epoch in range(2):
        for step in made._train.steps(epoch):
            (micro,) = step.micro
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * share(number)
            optimizer.zero_grad()
            scores = plain(micro.inputs["features"]).squeeze(1)
            nn.functional.binary_cross_entropy_with_logits(scores, micro.target.float()).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            number += 1
    made.run()
    assert far(weights(made), dict(plain.state_dict())) < 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_unequal_micro_batches_are_one_batch(loop: Made, rows: Rows, optimizer: str) -> None:
    """Batches of 50 in 4 parts of 12 or 13 weighted rows; the last one of an epoch in parts of 3 or 4."""
    x_NF, y_N = rows(214)
    weight_N = np.random.default_rng(3).uniform(0.2, 3.0, size=214)
    config = {"epochs": 5, "batch_size": 50, "clip": 0.3, "optimizer": {"name": optimizer, "learning_rate": 0.01}}
    one = loop(config, train=(x_NF, y_N, weight_N))
    many = loop({**config, "accumulate": 4}, train=(x_NF, y_N, weight_N))
    one.run()
    many.run()
    assert far(weights(one), weights(many)) < 1e-5
    for first, second in zip(one.record.lines, many.record.lines, strict=True):
        assert first == pytest.approx(second, rel=1e-5)


def test_a_step_is_clipped_by_the_global_norm(loop: Made, rows: Rows) -> None:
    # Plain SGD at a rate of 1 moves the weights by the gradient itself.
    config = {
        "epochs": 1, "max_steps": 1, "batch_size": 64, "schedule": {"kind": "constant", "warmup": 0},
        "optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    }  # fmt: skip
    moved = {}
    for clip in (0.0, 0.05):
        made = loop({**config, "clip": clip}, train=rows(64))
        before = weights(made)
        made.run()
        moved[clip] = {name: before[name] - after for name, after in weights(made).items()}
        assert made.record.lines[0]["grad_norm"] == pytest.approx(
            math.sqrt(sum(float(v.square().sum()) for v in moved[0.0].values())), rel=1e-4
        )
    assert math.sqrt(sum(float(value.square().sum()) for value in moved[0.05].values())) == pytest.approx(0.05, rel=1e-4)
    for name, whole in moved[0.0].items():
        torch.testing.assert_close(
            nn.functional.normalize(whole.flatten(), dim=0), nn.functional.normalize(moved[0.05][name].flatten(), dim=0)
        )


def test_the_same_seed_gives_the_same_bits(loop: Made, rows: Rows) -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        made = loop({"epochs": 3, "batch_size": 32, "ema": 0.9}, valid=rows(64, seed=1), seed=seed, dropout=0.3, norm=True)
        made.run()
        return weights(made), made.record.lines

    (first, lines), (second, again), (other, _) = run(0), run(0), run(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines == again
    assert far(first, other) > 1e-3


def test_training_stops_without_gain_and_keeps_the_best(loop: Made, rows: Rows) -> None:
    x_NF, _ = rows(64)
    told: list[float] = []
    kept: list[dict[str, Tensor]] = []
    made = loop(
        {"epochs": 200, "batch_size": 16, "early_stopping": 3, "optimizer": {"learning_rate": 0.05}, "schedule": {"kind": "constant"}},
        train=(x_NF, np.random.default_rng(0).integers(0, 2, 64)),  # nothing to learn but by heart
        valid=rows(128, seed=1), width=64,
        on_round=lambda number, measured: told.append(measured["valid_log_loss"]) or kept.append(weights(made)) or False,
    )  # fmt: skip
    at = made.run()
    best = int(np.argmin(told))
    assert at.best_round == best == len(told) - 4
    assert len(told) < 200
    assert all(torch.equal(value, kept[best][name]) for name, value in weights(made).items())
    assert not all(torch.equal(value, kept[-1][name]) for name, value in weights(made).items())


def test_someone_may_stop_it(loop: Made, rows: Rows) -> None:
    made = loop({"epochs": 9, "batch_size": 64}, valid=rows(64, seed=1), on_round=lambda number, measured: number == 1)
    assert made.run().step == 2 * 8


def test_evaluations_come_every_so_many_steps_and_at_the_end(loop: Made, rows: Rows) -> None:
    told: list[float] = []
    made = loop(
        {"epochs": 9, "max_steps": 11, "batch_size": 64, "evaluate_every": 4}, valid=rows(64, seed=1),
        on_round=lambda number, measured: told.append(measured["step"]) or False,
    )  # fmt: skip
    made.run()
    assert told == [4, 8, 11]


def test_without_validation_rows_the_last_weights_stay(loop: Made) -> None:
    made = loop({"epochs": 2, "batch_size": 64})
    at = made.run()
    assert (at.best_round, at.round, at.best) == (None, 2, None)


def test_the_average_follows_its_formula(loop: Made) -> None:
    made = loop({"epochs": 1, "batch_size": 32, "ema": 0.7, "optimizer": {"learning_rate": 0.05}})
    seen = [weights(made)]
    made.optimizer.register_step_post_hook(lambda *_: seen.append(weights(made)))
    made.run()
    expected = seen[0]
    for number, value in enumerate(seen[1:], 1):
        decay = min(0.7, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * value[name] for name in expected}
    assert len(seen) == 17
    assert far(expected, weights(made)) < 1e-5
    assert far(seen[-1], weights(made)) > 1e-3


def test_the_average_is_what_is_judged(loop: Made, rows: Rows) -> None:
    told: list[float] = []
    valid = rows(256, seed=1)
    made = loop(
        {"epochs": 3, "batch_size": 32, "ema": 0.99, "optimizer": {"learning_rate": 0.05}}, valid=valid,
        on_round=lambda number, measured: told.append(measured["valid_log_loss"]) or False,
    )  # fmt: skip
    at = made.run()
    with torch.no_grad():
        scores = made.parallel.parts[0](torch.from_numpy(valid[0])).squeeze(1)
    loss = nn.functional.binary_cross_entropy_with_logits(scores, torch.from_numpy(valid[1]).float())
    assert at.best_round is not None
    assert told[at.best_round] == pytest.approx(float(loss), rel=1e-5)


def test_fp16_skips_what_overflows_and_recovers(loop: Made, rows: Rows) -> None:
    made = loop({"epochs": 4, "batch_size": 64, "precision": "fp16", "optimizer": {"learning_rate": 0.02}}, train=rows(512))
    made.scale.factor = 2.0**40  # far beyond what fp16 holds
    before = weights(made)
    at = made.run()
    assert 15 <= at.overflows < 32
    assert made.scale.factor == 2.0 ** (40 - at.overflows)
    assert at.skipped == 0
    assert 0.01 < far(before, weights(made)) < 10
    assert all(math.isfinite(line["loss"]) for line in made.record.lines if "loss" in line)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_beside_full(loop: Made, rows: Rows, precision: str) -> None:
    config = {"epochs": 4, "batch_size": 64, "optimizer": {"learning_rate": 0.02}}
    full, half = loop(config, train=rows(512)), loop({**config, "precision": precision}, train=rows(512))
    full.run()
    half.run()
    assert [line["loss"] for line in half.record.lines] == pytest.approx([line["loss"] for line in full.record.lines], rel=0.02)
    assert [line["loss"] for line in half.record.lines] != [line["loss"] for line in full.record.lines]


def broken(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    x_NF, y_N = rows(256)
    x_NF[[37, 191], 2] = np.nan
    return x_NF, y_N


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(loop: Made, rows: Rows) -> None:
    made = loop({"epochs": 2, "batch_size": 32}, train=broken(rows))
    with pytest.raises(
        DataError, match=r"loss of every step must be a number, got step \d+ \(epoch 0, step \d+ of it\).*training rows (37|191)"
    ) as caught:
        made.run()
    assert "train.fault.nan" in (caught.value.hint or "")


def test_bad_rows_can_be_left_out(loop: Made, rows: Rows) -> None:
    events: list[Event] = []
    made = loop({"epochs": 3, "batch_size": 32, "fault": {"nan": "skip"}}, train=broken(rows), events=events, norm=True)
    at = made.run()
    warned = [event for event in events if event.kind == "train.nan"]
    assert at.skipped == len(warned) > 0
    assert {row for event in warned for row in event.fields["rows"]} == {37, 191}
    assert all(torch.isfinite(value).all() for value in weights(made).values())  # running statistics too


def test_a_run_whose_weights_are_gone_ends_though_steps_may_be_left_out(loop: Made, rows: Rows) -> None:
    made = loop({"epochs": 30, "batch_size": 32, "fault": {"nan": "skip"}}, train=rows(256))
    with torch.no_grad():
        made.parallel.parts[0].head.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="must be a number"):
        made.run()
    assert made.at.skipped == 19


@pytest.mark.parametrize(("policy", "skipped"), [("stop", 0), ("skip", 1)])
def test_a_spike_is_reported_with_its_rows(loop: Made, rows: Rows, policy: str, skipped: int) -> None:
    x_NF, y_N = rows(1024)
    config = {"epochs": 1, "batch_size": 32, "fault": {"nan": policy, "spike": 3.0}}
    (micro,) = list(loop(config, train=(x_NF, y_N))._train.steps(0))[24].micro
    row = int(micro.rows[5])
    x_NF[row] = (6e4, 6e4, -9e4, 0.0)  # far out
    found = []
    for label in (0, 1):  # and on the wrong side, whichever that is
        y_N[row] = label
        events: list[Event] = []
        at = loop(config, train=(x_NF, y_N), events=events).run()
        found += [(event, at.skipped) for event in events if event.kind == "train.spike"]
    ((event, left_out),) = found
    assert event.fields["rows"][0] == row
    assert event.fields["step"] == 25
    assert ("left out" in event.message) == (policy == "skip")
    assert left_out == skipped


def test_progress_is_told_and_lines_are_few(loop: Made, rows: Rows, tmp_path: Path) -> None:
    made = loop({"epochs": 150, "batch_size": 32}, train=rows(128))
    made.run()
    assert len(made.record.lines) <= 500
    assert made.record.lines[-1]["step"] == 600
    assert list(made.record.lines[0]) == ["step", "epoch", "loss", "grad_norm", "learning_rate"]
    speed = made.record.speed()
    assert speed["rows_per_s"] > speed["steps_per_s"] > 0
    assert 0 <= speed["data_wait"] <= 1
