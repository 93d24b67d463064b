"""Crosses of categories: the example's generator has what it says, and `dcn` learns what no sum of effects can tell."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from tidemill.core.metrics import evaluate
from tidemill.models.base import MemoryMatrix
from tidemill.models.kinds import kind_of
from tidemill.train.torch.config import NetworkConfig, Training


@pytest.fixture(scope="module")
def made_crosses(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("examples/crosses/made_crosses.py")


def auc(clicked_N: np.ndarray, chance_N: np.ndarray) -> float:
    return evaluate("binary", clicked_N, chance_N, metrics=["roc_auc"])["roc_auc"]


def test_the_parts_are_as_large_as_they_are_said_to_be(made_crosses: ModuleType) -> None:
    rows = made_crosses.table(40_000)
    for part in (made_crosses.alone, made_crosses.small, made_crosses.crossed):
        value_N = part(rows)
        assert abs(value_N.mean()) < 0.1
        assert 0.8 < value_N.std() < 1.2
    clicked_N = made_crosses.clicked(rows).to_numpy()
    without_N = made_crosses.ALONE * made_crosses.alone(rows) + made_crosses.SMALL * made_crosses.small(rows)
    assert auc(clicked_N, made_crosses.chances(rows)) > auc(clicked_N, without_N) + 0.04
    assert rows.equals(made_crosses.table(40_000)), "the same rows each time"


def test_a_pair_is_a_product_of_hidden_vectors(made_crosses: ModuleType) -> None:
    segments = made_crosses.names("s", made_crosses.SEGMENTS).to_pylist()[:30]
    items = made_crosses.names("i", made_crosses.ITEMS).to_pylist()[:40]
    pairs = [(segment, item) for segment in segments for item in items]
    rows = pa.table(
        {
            "segment": [segment for segment, _ in pairs],
            "item": [item for _, item in pairs],
            "site": [made_crosses.names("w", made_crosses.SITES)[0].as_py()] * len(pairs),
            "campaign": [made_crosses.names("c", made_crosses.CAMPAIGNS)[0].as_py()] * len(pairs),
        }
    )
    score_SI = made_crosses.crossed(rows).reshape(30, 40)
    score_SI = score_SI - made_crosses.crossed(rows.slice(0, 1))[0]  # the other pair is one number everywhere
    assert np.linalg.matrix_rank(np.diff(score_SI, axis=0), tol=1e-9) == made_crosses.RANK


def test_dcn_learns_a_cross_that_no_sum_of_effects_tells() -> None:
    random = np.random.default_rng(0)
    left_N, right_N = random.integers(1, 31, (2, 24_000))
    hidden = random.normal(size=(2, 31, 2))
    score_N = 1.5 * (hidden[0][left_N] * hidden[1][right_N]).sum(axis=1)
    clicked_N = (random.random(len(score_N)) < 1 / (1 + np.exp(-score_N))).astype(np.float64)
    x_NF = np.stack([left_N, right_N], axis=1).astype(np.float32)
    tables = {name: {"rows": 32, "width": 4} for name in ("left", "right")}
    train, test = (
        MemoryMatrix(x_NF[part], clicked_N[part], names=["left", "right"], tables=tables) for part in (slice(20_000), slice(20_000, None))
    )
    kind = kind_of("dcn")
    kind.training = Training(config=NetworkConfig(epochs=8))
    network = kind.fit(train, None, task="binary", num_classes=2, params=kind.Params(width=32), seed=0, threads=1)
    answered_N = np.asarray(network.predict(x_NF[20_000:])).reshape(test.num_rows, -1)[:, -1]

    effects = [
        np.bincount(code_N[:20_000], clicked_N[:20_000], 31) / np.bincount(code_N[:20_000], minlength=31).clip(1)
        for code_N in x_NF.T.astype(int)
    ]
    summed_N = sum(effect[code_N[20_000:]] for effect, code_N in zip(effects, x_NF.T.astype(int), strict=True))
    ceiling = auc(clicked_N[20_000:], score_N[20_000:])
    assert auc(clicked_N[20_000:], summed_N) < 0.65
    assert auc(clicked_N[20_000:], answered_N) > ceiling - 0.02
