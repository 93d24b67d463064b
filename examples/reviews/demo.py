"""Five folds: the tuned encoder beside words counted. Arguments are passed on to `tidemill run`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from get_data import FOLDS, get_data
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

FOLDER = Path(__file__).parent
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"


def main() -> int:
    data = get_data()
    found = []
    for fold in range(FOLDS):
        start = time.perf_counter()
        command = [TIDEMILL, "run", "--set", f"data.source=data/fold-{fold}.parquet", *sys.argv[1:]]
        say(shlex.join(["tidemill", *command[1:]]))
        ended = subprocess.run(command, cwd=FOLDER, check=False)
        if ended.returncode:
            return ended.returncode
        tuned = read("models", "show", f"reviews@{read('models', 'list')[-1]['version']}")["evidence"]["quality"]["value"]
        found.append((tuned, counted_words(data / f"fold-{fold}.parquet"), time.perf_counter() - start))
        print(f"fold {fold}: encoder {tuned:.4f}, TF-IDF {found[-1][1]:.4f}, {found[-1][2]:.0f} s", flush=True)
    tuned_F, counted_F, seconds_F = np.array(found).T
    gain_F = tuned_F - counted_F
    low, high = gain_F.mean() + np.array([-2.776, 2.776]) * gain_F.std(ddof=1) / np.sqrt(FOLDS)  # Student's t of 4 degrees, 95 %
    print(f"\naccuracy  encoder {tuned_F.mean():.4f}, TF-IDF and logistic regression {counted_F.mean():.4f}")
    print(
        f"gain      {100 * gain_F.mean():.1f} points (95 % interval {100 * low:.1f} to {100 * high:.1f} over the folds), {seconds_F.sum():.0f} s"
    )
    return 0


def counted_words(file: Path) -> float:
    """Accuracy on the last fifth of logistic regression over TF-IDF of words and pairs of words, fitted on the rest."""
    rows = pq.read_table(file)
    texts, liked_N = rows["sentence"].to_pylist(), np.asarray(rows["liked"])
    known = len(texts) - round(0.2 * len(texts))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=500))
    return float(model.fit(texts[:known], liked_N[:known]).score(texts[known:], liked_N[known:]))


def read(*command: str) -> Any:
    """What a command says as JSON."""
    said = subprocess.run([TIDEMILL, *command, "--json"], cwd=FOLDER, check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


def say(command: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}$ {command}{plain}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
