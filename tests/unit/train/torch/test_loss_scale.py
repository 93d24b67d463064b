from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tidemill.train.torch.precision import GROWTH_STEPS, LossScale, Precision  # noqa: E402


def test_the_scale_goes_as_torchs_own() -> None:
    ours = LossScale(enabled=True)
    weight = torch.nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([weight], lr=0.0)
    theirs = torch.amp.GradScaler("cpu")
    theirs.scale(weight.sum())
    for step in range(2 * GROWTH_STEPS + 60):
        bad = step in (3, 4, 50)
        weight.grad = torch.tensor([float("inf") if bad else 1.0])
        theirs.unscale_(plain)
        theirs.step(plain)
        theirs.update()
        assert ours.update(float("inf") if bad else 1.0) is not bad
        assert ours.factor == theirs.get_scale(), step


def test_no_scale_without_fp16() -> None:
    scale = LossScale(enabled=False)
    assert scale.update(float("nan"))
    assert scale.factor == 1.0


def test_the_scale_goes_on_from_its_state() -> None:
    first, second = LossScale(enabled=True), LossScale(enabled=True)
    for step in range(GROWTH_STEPS - 1):
        first.update(float("nan") if step == 0 else 1.0)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        first.update(1.0)
        second.update(1.0)
    assert first.factor == second.factor == 65_536.0


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_in_what_was_asked_for(name: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    with Precision(name).autocast():  # type: ignore[arg-type]
        assert layer(torch.zeros(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32
