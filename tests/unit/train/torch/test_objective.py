from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from tidemill.core.errors import Unsupported  # noqa: E402
from tidemill.train.torch.objective import IGNORED, objective  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_loss_is_a_sum_whatever_the_cut() -> None:
    cases = {
        "regression": (torch.randn(9, 1), torch.randn(9)),
        "binary": (torch.randn(9, 1), torch.randint(2, (9,))),
        "multiclass": (torch.randn(9, 4), torch.randint(4, (9,))),
        "next_token": (torch.randn(9, 5, 7), torch.randint(7, (9, 5))),
    }
    for task, (scores, target) in cases.items():
        for weight in (None, torch.rand(9)):
            loss = objective(task, label_smoothing=0.1)
            whole, mass = loss(scores, target, weight)
            parts = [loss(scores[cut], target[cut], None if weight is None else weight[cut]) for cut in (slice(0, 2), slice(2, 9))]
            assert float(sum(part for part, _ in parts)) == pytest.approx(float(whole), rel=1e-5), task
            assert float(sum(part for _, part in parts)) == pytest.approx(float(mass), rel=1e-6), task


def test_a_weight_of_two_is_the_row_twice() -> None:
    scores, target = torch.randn(3, 4), torch.randint(4, (3,))
    twice = objective("multiclass")(scores, target, torch.tensor([1.0, 2.0, 0.0]))
    again = objective("multiclass")(scores[[0, 1, 1]], target[[0, 1, 1]], None)
    assert [float(value) for value in twice] == pytest.approx([float(value) for value in again])


def test_regression_is_in_units_of_the_target() -> None:
    loss, mass = objective("regression", scale=10.0)(torch.tensor([[5.0], [25.0]]), torch.tensor([5.0, 5.0]), None)
    assert (float(loss), mass) == (4.0, 2.0)


def test_smoothing_is_what_torch_does_for_many_classes() -> None:
    scores, target = torch.randn(6, 5), torch.randint(5, (6,))
    loss, _ = objective("multiclass", label_smoothing=0.2)(scores, target, None)
    assert float(loss) == pytest.approx(float(functional.cross_entropy(scores, target, label_smoothing=0.2, reduction="sum")))


def test_smoothing_of_two_classes_is_that_of_many() -> None:
    scores, target = torch.randn(6, 1), torch.randint(2, (6,))
    loss, _ = objective("binary", label_smoothing=0.2)(scores, target, None)
    pair = torch.cat([torch.zeros(6, 1), scores], dim=1)
    assert float(loss) == pytest.approx(float(functional.cross_entropy(pair, target, label_smoothing=0.2, reduction="sum")), rel=1e-5)


def test_tokens_without_a_target_do_not_count() -> None:
    scores, target = torch.randn(2, 4, 6), torch.randint(6, (2, 4))
    target[0, 2:] = IGNORED
    loss, mass = objective("next_token")(scores, target, None)
    assert float(mass) == 6
    assert float(loss) == pytest.approx(float(functional.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="sum")), rel=1e-5)


def test_halves_are_taken_as_whole_numbers_of_floats() -> None:
    scores = torch.full((2_000, 1), 3.0, dtype=torch.bfloat16)
    loss, _ = objective("binary")(scores, torch.zeros(2_000, dtype=torch.int64), None)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(2_000 * 3.0485873, rel=1e-5)


def test_a_task_without_a_loss_is_refused() -> None:
    with pytest.raises(Unsupported, match="'ranking'"):
        objective("ranking")
