"""The drift report: silent on the same distribution however many rows, loud on another, from files and from logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tidemill as tm
from tidemill.core.errors import DataError
from tidemill.core.package import Package
from tidemill.monitor.drift import report

# pandas warns about what pyarrow does with its time zones.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray")


def rows(size: int, seed: int, *, shift: float = 0.0, kinds: str = "abc") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x, kind = rng.normal(shift, 1, size), rng.choice(list(kinds), size)
    when = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 10_000, size), "min")
    return pd.DataFrame({"x": x, "kind": kind, "when": when, "y": x + (kind == "a") > 0.3})


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tm.fit(rows(4000, 0), target="y", model="linear", home=tmp_path_factory.mktemp("home"), name="m").package


def save(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("size", [60, 1000, 30_000])
def test_the_same_distribution_is_stable(package: Package, tmp_path: Path, size: int) -> None:
    found = report(package, save(rows(size, 1), tmp_path / "live.parquet"))
    assert found["verdict"]["level"] == "stable", found["verdict"]["text"]
    assert found["current"]["rows"] == size


def test_a_shift_names_its_column_first(package: Package, tmp_path: Path) -> None:
    found = report(package, save(rows(2000, 1, shift=1.5), tmp_path / "live.parquet"))
    assert found["verdict"]["level"] == "severe"
    assert found["columns"][0]["name"] == "x"
    assert [column["level"] for column in found["columns"] if column["name"] == "kind"] == ["stable"]
    shares = found["columns"][0]["current"]["shares"]
    assert len(found["columns"][0]["reference"]["edges"]) == len(shares) + 1
    assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_an_unseen_category_is_drift(package: Package, tmp_path: Path) -> None:
    found = report(package, save(rows(2000, 1, kinds="abcd"), tmp_path / "live.parquet"))
    kind = next(column for column in found["columns"] if column["name"] == "kind")
    assert kind["level"] != "stable"
    assert kind["unseen"] == pytest.approx(0.25, abs=0.05)


def test_labels_give_the_coverage_of_intervals_now(tmp_path: Path) -> None:
    frame = rows(3000, 0).assign(y=lambda rows: rows["x"] + np.random.default_rng(3).normal(size=len(rows)))
    settings = {"kind": "xgboost", "num_rounds": 20, "max_depth": 3, "interval": 0.8}
    package = tm.fit(frame, target="y", model=settings, home=tmp_path / "home", contract={"parity": 1e-4}).package
    for noise, held in ((1.0, 0.8), (3.0, 0.4)):
        live = rows(2000, 1).assign(y=lambda rows, noise=noise: rows["x"] + noise * np.random.default_rng(4).normal(size=len(rows)))
        path = save(live, tmp_path / f"live-{noise}.parquet")
        found = report(package, path, labels=path)
        assert found["quality"]["interval"]["coverage"] == pytest.approx(held, abs=0.06)
        assert found["quality"]["interval"]["expected"] == package.evidence()["interval"]["coverage"]
        assert "made for 80%" in found["verdict"]["text"]


def test_labels_give_the_quality_now(package: Package, tmp_path: Path) -> None:
    live = save(rows(2000, 1), tmp_path / "live.parquet")
    quality = report(package, live, labels=live)["quality"]
    assert quality["low"] <= quality["value"] <= quality["high"]
    assert quality["value"] == pytest.approx(quality["expected"]["value"], abs=0.03)


def test_a_prediction_log_is_read_as_its_rows(package: Package, tmp_path: Path) -> None:
    frame = rows(500, 1)
    lines = [
        {
            "at": f"2026-02-0{1 + i % 9}T00:00:00Z",
            "model": "m",
            "version": "1",
            "id": str(i),
            "prediction": True,
            "probability": 0.5,
            "inputs": inputs,
        }
        for i, inputs in enumerate(json.loads(frame.drop(columns="y").to_json(orient="records", date_format="iso")))
    ]
    lines.append({**lines[0], "version": "7"})
    log = tmp_path / "log"
    log.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"at": "2026'
    (log / "predictions-2026-02-01.jsonl").write_text(text, encoding="utf-8")
    found = report(package, log)
    assert found["current"]["rows"] == 500
    assert (found["current"]["from"], found["current"]["to"]) == ("2026-02-01T00:00:00Z", "2026-02-09T00:00:00Z")
    from_file = report(package, save(frame, tmp_path / "live.parquet"))
    assert [column["psi"] for column in found["columns"]] == pytest.approx([column["psi"] for column in from_file["columns"]], abs=1e-6)


def test_too_few_rows_say_nothing(package: Package, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 50 rows"):
        report(package, save(rows(10, 1), tmp_path / "live.parquet"))
