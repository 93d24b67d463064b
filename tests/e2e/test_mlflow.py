"""The mirror in a real MLflow on SQLite: runs, curves, artifacts, versions, aliases, its own server and loader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tidemill import pipeline
from tidemill.core.ledger import Ledger
from tidemill.core.project import Project, from_tree
from tidemill.rollout.config import RolloutConfig

mlflow = pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def project(folder: Path, max_depth: int) -> Project:
    tree = {
        "name": "mirrored",
        "data": {"source": "rows.csv", "target": "y"},
        "model": {"kind": "xgboost", "num_rounds": 10, "early_stopping": 0, "max_depth": max_depth},
        "rollout": {"mirrors": ["mlflow"]},
    }
    return from_tree(tree, folder=folder)


def publish(folder: Path, max_depth: int) -> tuple[pipeline.Run, str]:
    from tidemill.rollout.mlflow import MLflowMirror

    made = pipeline.run(project(folder, max_depth))
    report = made.folder / "report.html"
    report.write_text("<p>report", encoding="utf-8")
    assert made.version is not None
    mirror = MLflowMirror(RolloutConfig(), folder)
    return made, mirror.publish(made.version, run=made.to_json(), stages=made.stages, report=report)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mirror")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": (x[:, 0] + rng.normal(size=800) > 0).astype(int)}).to_csv(made / "rows.csv", index=False)
    return made


@pytest.fixture(scope="module")
def published(folder: Path) -> tuple[pipeline.Run, str, mlflow.MlflowClient]:
    made, run_id = publish(folder, 2)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return made, run_id, mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_run_curves_artifacts_and_version_appear(published: tuple[pipeline.Run, str, mlflow.MlflowClient]) -> None:
    made, run_id, client = published
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.kind"] == "xgboost"
    assert run.data.metrics["test/roc_auc"] == pytest.approx(made.version.evidence["value"])  # type: ignore[union-attr]
    curves = [key for key in run.data.metrics if key.startswith("curve/")]
    assert curves
    assert len(client.get_metric_history(run_id, curves[0])) == 10
    assert {item.path for item in client.list_artifacts(run_id)} == {"model", "report.html"}
    version = client.get_model_version_by_alias("mirrored", "champion")
    assert version.tags["tidemill.identity"] == made.version.identity  # type: ignore[union-attr]


def test_publishing_again_leaves_no_double(folder: Path, published: tuple[pipeline.Run, str, mlflow.MlflowClient]) -> None:
    from tidemill.rollout.mlflow import MLflowMirror

    made, run_id, client = published
    assert made.version is not None
    assert MLflowMirror(RolloutConfig(), folder).publish(made.version, run=made.to_json(), stages=made.stages) == run_id
    assert len(client.search_model_versions("name = 'mirrored'")) == 1


def test_mlflow_loads_the_package(folder: Path, published: tuple[pipeline.Run, str, mlflow.MlflowClient]) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/mirrored@champion")
    answers = loaded.predict(pd.DataFrame({"a": [2.0, -2.0], "b": [0.0, 0.0]}))
    assert answers["prediction"].tolist() == [1, 0]
    files = [path.name for path in (folder / "mlartifacts").rglob("*") if path.is_file()]
    assert "full.onnx" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib"))]


def test_its_own_server_shows_them(folder: Path, published: tuple[pipeline.Run, str, mlflow.MlflowClient], free_port: int) -> None:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free_port), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{free_port}"
        for _ in range(300):
            try:
                assert b"<" in urllib.request.urlopen(url, timeout=2).read()
                break
            except OSError:
                time.sleep(0.2)
        address = f"{url}/api/2.0/mlflow/registered-models/get?name=mirrored"
        shown = json.loads(urllib.request.urlopen(address, timeout=10).read())["registered_model"]
        assert shown["aliases"] == [{"alias": "champion", "version": "1"}]
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its own session: the server and the workers that it started
        server.wait(timeout=30)


def test_an_alias_moved_there_is_imported_or_refused(folder: Path, published: tuple[pipeline.Run, str, mlflow.MlflowClient]) -> None:
    from tidemill.rollout.mlflow import MLflowMirror

    _, _, client = published
    second, _ = publish(folder, 3)
    ledger, mirror = Ledger(folder / ".tidemill" / "ledger.db"), MLflowMirror(RolloutConfig(), folder)
    assert second.version is not None
    assert ledger.alias("mirrored") == 1
    client.set_registered_model_alias("mirrored", "champion", "2")
    said = mirror.pull_aliases(ledger, "mirrored")
    assert len(said) == 1
    assert "was moved to version 2 from outside" in said[0]
    assert ledger.alias("mirrored") == 2
    assert mirror.pull_aliases(ledger, "mirrored") == []

    client.create_model_version("mirrored", source=client.get_model_version("mirrored", "1").source)
    client.set_registered_model_alias("mirrored", "champion", "3")
    said = mirror.pull_aliases(ledger, "mirrored")
    assert "refused" in said[0]
    assert ledger.alias("mirrored") == 2
    assert client.get_model_version_by_alias("mirrored", "champion").version in ("2", 2)

    (second.version.path / "full.onnx").write_bytes(b"spoilt")
    ledger.promote("mirrored", 1, why="back")
    mirror.push_aliases("mirrored", {"champion": 1})
    client.set_registered_model_alias("mirrored", "champion", "2")
    assert "corrupted" in mirror.pull_aliases(ledger, "mirrored")[0]
    assert ledger.alias("mirrored") == 1
