"""Runs a project and answers for its test rows, as a process of its own. Usage: ours.py PROJECT.json HOME FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from tidemill.core.package import Package, Predictor
from tidemill.core.project import from_tree
from tidemill.pipeline import run


def main(project: Path, home: Path, folder: Path) -> None:
    made = run(from_tree(json.loads(project.read_text(encoding="utf-8"))), home=home, register=False)
    data = made.stages["data"]
    said = {
        "data": str(data.path),
        "task": data.facts["task"],
        "refused": str(made.refused or ""),
        "seconds": {name: timing["seconds"] for name, timing in made.timings.items()},
    }
    (folder / "ours.json").write_text(json.dumps(said), encoding="utf-8")
    if made.package is not None:
        np.save(folder / "ours.npy", answers(made.package, data.path / "test"))


def answers(package: Package, rows: Path) -> np.ndarray:
    """Probabilities of the second class, of each class, or numbers, for a folder of rows."""
    predictor = Predictor(package)
    found = [predictor.arrow(batch) for batch in ds.dataset(rows).to_batches() if batch.num_rows]
    if package.task == "regression":
        return np.concatenate([each.prediction for each in found])
    probability_NK = np.concatenate([each.probability for each in found if each.probability is not None])
    return probability_NK[:, 1] if package.task == "binary" else probability_NK


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
