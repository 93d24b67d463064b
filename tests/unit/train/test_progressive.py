from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.errors import Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.load import load
from tidemill.core.project import Project, build
from tidemill.models import native
from tidemill.models.base import predict
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.train.stage import run
from tidemill.train.workload import Workload, first_share, taken

Stages = Callable[..., tuple[Artifact, Artifact]]


def project(sample: Any, **model: Any) -> Project:
    unread: dict[str, Any] = {section: {} for section in ("features", "serve", "monitor", "rollout")}
    data = load("section", "data")(source="rows.csv", target="late", sample=sample)
    config = build(ModelConfig, {"num_rounds": 20, "early_stopping": 0, **model}, path="model")
    made = {"contract": ContractConfig(), "engine": EngineConfig(threads=1), "train": TrainConfig(batch_rows=512)}
    return Project(name="flights", data=data, model=config, **made, **unread)


def train(stages: tuple[Artifact, Artifact], out: Path, made: Project, events: Events | None = None) -> dict[str, Any]:
    out.mkdir()
    facts = run(made, *stages, out, events=events or Events())
    report: dict[str, Any] = json.loads((out / "train.json").read_text())
    return {**report, "facts": facts}


@pytest.mark.parametrize("seed", [0, 7])
def test_larger_samples_hold_the_smaller_ones(seed: int) -> None:
    samples = [taken(100_000, share, seed=seed) for share in (0.01, 0.1, 0.5, 0.999)]
    for share, sample in zip((0.01, 0.1, 0.5, 0.999), samples, strict=True):
        assert sample.mean() == pytest.approx(share, abs=5 * (share * (1 - share) / 100_000) ** 0.5)
        assert sample[::2].mean() == pytest.approx(share, abs=8 * (share * (1 - share) / 100_000) ** 0.5)
    assert all((small <= large).all() for small, large in itertools.pairwise(samples))
    assert (taken(1_000, 0.1, seed=seed) == samples[1][:1_000]).all()
    assert (taken(100_000, 0.1, seed=seed + 1) != samples[1]).any()


def test_samples_grow_until_rows_stop_paying(finished_stages: Stages, tmp_path: Path) -> None:
    told: list[Event] = []
    stages = finished_stages(rows=8000)
    made = project({"by": "progressive", "share": 0.05, "gain": 0.03, "growth": 2.0})
    report = train(stages, tmp_path / "out", made, Events(told.append))
    curve = report["learning_curve"]
    rows = [point["rows"] for point in curve]
    assert rows == sorted(rows)
    assert rows[0] >= 900
    gains = [(after["valid"] - before["valid"]) / before["valid"] for before, after in itertools.pairwise(curve)]
    assert all(gain >= 0.03 for gain in gains[:-1])
    assert gains[-1] < 0.03
    assert "less than the 3.00% that more rows must bring" in report["stopped"]
    assert report["facts"]["rows"]["train"] == rows[-1] < 8000
    assert [event.fields["rows"] for event in told if event.kind == "train.sample"] == rows
    # the model is the last fit
    whole = Workload.of(made, *stages, whole=True)
    last = whole.sampled(curve[-1]["share"])
    model = made.model.model()
    again = last.fit(model, made.model.parameters())
    assert last.valid is not None
    np.testing.assert_array_equal(predict(native.load(tmp_path / "out" / "native"), last.valid), predict(again, last.valid))


def test_all_rows_are_used_where_they_pay(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    report = train(stages, tmp_path / "out", project({"by": "progressive", "share": 0.5, "gain": 0.0, "growth": 100.0}))
    assert report["learning_curve"][-1]["share"] == 1.0
    plain = train(stages, tmp_path / "plain", project(1.0))
    assert "learning_curve" not in plain
    files = [(folder / "native" / "model.ubj").read_bytes() for folder in (tmp_path / "out", tmp_path / "plain")]
    assert files[0] == files[1]


def test_a_search_works_on_the_first_sample(finished_stages: Stages) -> None:
    stages = finished_stages(rows=8000)
    made = project({"by": "progressive", "share": 0.3}, class_weight="balanced")
    workload = Workload.of(made, *stages)
    assert workload.train.num_rows == pytest.approx(2400, abs=200)
    for matrix in (workload.train, workload.weighted_train):
        batches = list(matrix.batches())
        assert sum(len(batch.y_N) for batch in batches) == matrix.num_rows
        np.testing.assert_array_equal(np.concatenate([batch.y_N for batch in batches]), matrix.targets()[0])
    assert workload.weighted_train.targets()[1] is not None


def test_a_first_sample_is_not_tiny() -> None:
    sampling = load("section", "data")(source="a.csv", target="y", sample={"by": "progressive", "share": 0.001}).sampling()
    assert first_share(sampling, 10_000) == 0.1
    assert first_share(sampling, 10) == 1.0
    assert first_share(sampling, 10_000_000) == 0.001


def test_it_needs_validation_rows(finished_stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="progressive needs validation rows"):
        train(finished_stages(valid=0), tmp_path / "out", replace(project({"by": "progressive", "share": 0.5})))
