"""KServe: an `InferenceService` (v1beta1) for a model repository that KServe's Triton runtime serves from `/mnt/models`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tidemill.core.errors import ConfigError
from tidemill.core.package import Package

MANIFEST = "inferenceservice.yaml"
REPOSITORY = "models"
RUNTIME = "kserve-tritonserver"


def write(package: Package, folder: Path, *, storage_uri: str) -> list[str]:
    """Write the manifest into a folder; what its users must know, a sentence each.

    Args:
        storage_uri: Where the repository in `models/` beside the manifest will lie.

    Raises:
        ConfigError: If that is no address.
    """
    text = manifest(package, storage_uri=storage_uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return [
        f"upload what is in {REPOSITORY}/ to {storage_uri}, then kubectl apply -f {MANIFEST}",
        f"it names KServe's runtime {RUNTIME}, which must be installed in the cluster",
    ]


def manifest(package: Package, *, storage_uri: str) -> str:
    """The text of the `InferenceService`. Values are in quotes as JSON has them, which YAML reads.

    Raises:
        ConfigError: If `storage_uri` is no address.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", storage_uri):
        raise ConfigError(f"--storage-uri: must be like s3://bucket/folder, gs://..., pvc://claim/folder, got {storage_uri!r}")
    annotations = {"tidemill/package": package.name, "tidemill/version": str(package.version or ""), "tidemill/identity": package.identity}
    return "\n".join([
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {json.dumps(service_name(package.name))}",
        "  annotations:",
        *(f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in annotations.items() if value),
        "spec:",
        "  predictor:",
        "    minReplicas: 1",
        "    model:",
        "      modelFormat:",
        "        name: triton",
        '        version: "2"',
        f"      runtime: {RUNTIME}",
        "      protocolVersion: v2",
        f"      storageUri: {json.dumps(storage_uri, ensure_ascii=False)}",
        "",
    ])  # fmt: skip


def service_name(name: str) -> str:
    """A package's name as Kubernetes takes it: letters, digits and hyphens, a letter first, at most 63."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (made if made[:1].isalpha() else f"m-{made}")[:63].rstrip("-")
