"""What a report is made of: the small JSON files of a run's stages, read once, absent ones left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.core.artifact import Artifact

FILES = {
    "data": ("schema.json", "profile.json", "checks.json", "leakage.json"),
    "features": ("features.json",),
    "tune": ("best.json", "trials.json", "search.json"),
    "train": ("train.json", "history.jsonl", "steps.jsonl"),
    "package": ("tidemill.json", "contract.json", "baseline.json"),
}
ORDER = ("data", "features", "tune", "train", "compress", "package")
MAX_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a page shows, as plain values."""

    run: Mapping[str, Any]
    """The run itself: name, task, version, times, stages, environment."""
    stages: Mapping[str, Mapping[str, Any]]
    """Each finished stage's manifest, with `bytes` (all its files) added."""
    files: Mapping[str, Any]
    """The parsed files, by `<stage>/<file>`."""

    def find(self, path: str, *keys: str, default: Any = None) -> Any:
        """The value under `keys` in one file; `default` where the file or a key is absent or null."""
        return dig(self.files.get(path), *keys, default=default)

    def about(self, *keys: str, default: Any = None) -> Any:
        """The value under `keys` in what is known of the run."""
        return dig(self.run, *keys, default=default)


def collect(stages: Mapping[str, Artifact], *, run: Mapping[str, Any]) -> Report:
    """The report of a run from its stages' folders; what a stage did not write is left out.

    Args:
        stages: Finished stages by name, as many as there are.
        run: What no stage knows, as `run.json` holds it; every key is optional: `run` (its id), `name`, `version`, `promoted`,
            `refused` (the breaches), `started`, `ended`, `command`, `stages` {name: {"seconds", "peak_mb", "cached", "cpu"}},
            `environment` {"python", "libraries", "hardware"}; of a refused package `contract`, its promises, and `evidence`, a folder.
    """
    files: dict[str, Any] = {}
    manifests: dict[str, Mapping[str, Any]] = {}
    for stage in [*ORDER, *(name for name in stages if name not in ORDER)]:
        if stage not in stages:
            continue
        artifact = stages[stage]
        size = sum(entry.get("bytes", 0) for entry in artifact.manifest.get("files", {}).values())
        manifests[stage] = {**artifact.manifest, "bytes": size}
        for name in FILES.get(stage, ()):
            _keep(files, f"{stage}/{name}", artifact.path / name)
    if "package" in stages:
        evidence = stages["package"].path / "evidence"
    else:  # refused: what was measured of it is kept beside the run
        evidence = Path(str(run.get("evidence") or ""))
        if run.get("evidence") and run.get("contract"):
            files["package/contract.json"] = {"promises": run["contract"]}
    if evidence.name and evidence.is_dir():
        for path in sorted(evidence.glob("*.json")):
            _keep(files, f"package/evidence/{path.name}", path)
    return Report(run=dict(run), stages=manifests, files=files)


def dig(value: Any, *keys: str, default: Any = None) -> Any:
    """The value under nested keys of plain mappings, or `default`."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def _keep(files: dict[str, Any], name: str, path: Path) -> None:
    """Read one file; a damaged one is as good as absent, since the report must not fail a run that ended well."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            value: Any = [line for line in map(json.loads, filter(str.strip, text.splitlines())) if isinstance(line, dict)]
        else:
            value = json.loads(text)
    except (OSError, ValueError):
        return
    if value is not None:
        files[name] = value
