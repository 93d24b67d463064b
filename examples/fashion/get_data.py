"""Fetches Fashion-MNIST, the Debian package dataset-fashion-mnist, and writes its images as PNG files in one Parquet table."""

from __future__ import annotations

import gzip
import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = Path(__file__).parent / "data"
PACKAGE = "dataset-fashion-mnist"
PLACE = Path("usr/share/datasets/fashion-mnist")
GARMENTS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def get_data(folder: Path = FOLDER) -> Path:
    """The table, made once: `number`, `image`, `garment`; the last 10,000 of 70,000 rows are the official test images."""
    file = folder / "fashion.parquet"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    installed = Path("/") / PLACE
    with tempfile.TemporaryDirectory() as work:
        if not installed.is_dir():
            print(f"fetching {PACKAGE}", flush=True)
            subprocess.run(["apt-get", "-qq", "download", PACKAGE], cwd=work, check=True)
            subprocess.run(["dpkg", "-x", next(Path(work).glob("*.deb")), work], check=True)
            installed = Path(work) / PLACE
        parts = [read(installed, name) for name in ("train", "t10k")]
    pixels_NHW, label_N = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    table = pa.table(
        {
            "number": pa.array(np.arange(len(pixels_NHW))),
            "image": pa.array([png(pixels_HW) for pixels_HW in pixels_NHW], pa.binary()),
            "garment": pa.array([GARMENTS[label] for label in label_N]),
        }
    )
    pq.write_table(table, folder / ".partial", compression="none")
    (folder / ".partial").rename(file)
    return file


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 28, 28) and labels (N,) of one of the two parts, from the files' own format."""
    pixels = np.frombuffer(gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return pixels.reshape(-1, 28, 28), labels


def png(pixels_HW: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    print(get_data())
