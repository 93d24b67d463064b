"""MLflow as a mirror of the ledger, for people who live in it: runs, curves, artifacts, versions, aliases.

The ledger stays the truth. What is published can be published again without a double; an alias that was moved in MLflow
is imported as an event where the version keeps its contract, else refused and moved back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill.core.artifact import Artifact
from tidemill.core.contract import enforce, judge
from tidemill.core.errors import Conflict, TidemillError
from tidemill.core.events import Events
from tidemill.core.ledger import Ledger, Version
from tidemill.core.load import need
from tidemill.rollout.config import RolloutConfig

RUN_TAG = "tidemill.run"
VERSION_TAG = "tidemill.version"
IDENTITY_TAG = "tidemill.identity"
LOADER = "tidemill.rollout.pyfunc"


class MLflowMirror:
    """Publishes to the MLflow at `config.mlflow.tracking_uri`.

    Raises:
        MissingDependency: If the extra [mlflow] is not installed.
    """

    def __init__(self, config: RolloutConfig, folder: Path) -> None:
        mlflow = need("mlflow", "the MLflow mirror")
        self._uri = _absolute(config.mlflow.tracking_uri, folder)
        self._experiment = config.mlflow.experiment
        self._artifacts = folder.resolve() / "mlartifacts"
        self._client = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def publish(
        self,
        version: Version,
        *,
        run: Mapping[str, Any],
        stages: Mapping[str, Artifact],
        report: Path | None = None,
        events: Events | None = None,
    ) -> str:
        """Write one run and its version; returns MLflow's run id. A run that is there already is left as it is."""
        experiment = self._experiment_id(self._experiment or version.name)
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run['run']}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        created = self._client.create_run(
            experiment, run_name=str(run["run"]), tags={RUN_TAG: str(run["run"]), IDENTITY_TAG: version.identity}
        )
        run_id = str(created.info.run_id)
        self._parameters(run_id, run, stages)
        self._curves(run_id, version, stages)
        self._files(run_id, version, report)
        self._version(run_id, version)
        self._client.set_terminated(run_id)
        self.push_aliases(version.name, dict.fromkeys(version.aliases, version.version))
        (events or Events()).emit("mirror.published", f"MLflow run {run_id}", run_id=run_id, uri=self._uri)
        return run_id

    def push_aliases(self, name: str, aliases: Mapping[str, int]) -> None:
        """Point MLflow's aliases where the ledger's are."""
        places = self._places(name)
        for alias, version in aliases.items():
            if version in places:
                self._client.set_registered_model_alias(name, alias, places[version])

    def pull_aliases(self, ledger: Ledger, name: str) -> list[str]:
        """Import aliases that were moved in MLflow; what breaks its contract is refused and moved back there.

        Returns:
            What happened, a sentence for each alias that differed.
        """
        said: list[str] = []
        versions = {str(place): version for version, place in self._places(name).items()}
        for alias, place in self._client.get_registered_model(name).aliases.items():
            version, current = versions.get(str(place)), ledger.alias(name, alias)
            if version == current:
                continue
            try:
                if version is None:
                    raise Conflict(f"MLflow version {place} of {name} was not made from a package of this ledger")
                package = ledger.version(name, version).open()
                enforce(judge(package.contract(), package.evidence()))
                entry = ledger.promote(name, version, alias=alias, expected=current, why=f"moved in MLflow at {self._uri}", kind="imported")
                said.append(str(entry))
            except TidemillError as error:
                entry = ledger.record("refused", name, version=version, why=f"{alias} moved in MLflow: {error.message}")
                said.append(str(entry))
                if current is not None:
                    self.push_aliases(name, {alias: current})
                else:
                    self._client.delete_registered_model_alias(name, alias)
        return said

    def _experiment_id(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=self._artifacts.as_uri()))

    def _parameters(self, run_id: str, run: Mapping[str, Any], stages: Mapping[str, Artifact]) -> None:
        given = _flat({key: run["config"].get(key) for key in ("task", "seed", "model", "tune")})
        fitted = stages["train"].read_json("train.json").get("config", {}) if "train" in stages else {}
        for key, value in {**given, **_flat({"fitted": fitted})}.items():
            self._client.log_param(run_id, key, str(value)[:500])
        for stage, timing in run["stages"].items():
            self._client.log_metric(run_id, f"seconds/{stage}", float(timing["seconds"]))

    def _curves(self, run_id: str, version: Version, stages: Mapping[str, Artifact]) -> None:
        from mlflow.entities import Metric

        points = []
        if "train" in stages:
            for name, at, curve in (("history.jsonl", "round", "curve"), ("steps.jsonl", "step", "step")):
                path = stages["train"].path / name
                for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
                    row = json.loads(line)
                    step = int(row.get(at, 0))
                    points += [
                        Metric(f"{curve}/{key}", float(value), 0, step) for key, value in _flat(row).items() if key != at and _number(value)
                    ]
        quality = version.open().evidence().get("quality", {})
        for metric, interval in quality.get("metrics", {}).items():
            points += [Metric(f"test/{metric}", float(interval["point"]), 0, 0)] if _number(interval["point"]) else []
        for start in range(0, len(points), 1000):
            self._client.log_batch(run_id, metrics=points[start : start + 1000])

    def _files(self, run_id: str, version: Version, report: Path | None) -> None:
        """The package as an MLflow model of the flavour pyfunc, which holds no pickle, and the report."""
        from mlflow import pyfunc

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            pyfunc.save_model(str(model), loader_module=LOADER, data_path=str(version.path), pip_requirements=["tidemill[train]"])
            self._client.log_artifacts(run_id, str(model), "model")
        if report is not None:
            self._client.log_artifact(run_id, str(report))

    def _version(self, run_id: str, version: Version) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(version.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if version.version in self._places(version.name):
            return
        source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
        tags = {VERSION_TAG: str(version.version), IDENTITY_TAG: version.identity}
        self._client.create_model_version(version.name, source, run_id, tags=tags)

    def _places(self, name: str) -> dict[int, str]:
        """MLflow's version number of each of the ledger's."""
        found = self._client.search_model_versions(f"name = '{name}'")
        return {int(entry.tags[VERSION_TAG]): str(entry.version) for entry in found if VERSION_TAG in entry.tags}


def _absolute(uri: str, folder: Path) -> str:
    """A relative SQLite path taken from the project's folder."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{folder.resolve() / uri.removeprefix(prefix)}"
    return uri


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            flat.update(_flat(value, where))
        elif value is not None:
            flat[where] = value
    return flat


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
