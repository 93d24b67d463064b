"""Peak memory of a command and all that it starts, and tables of a given size to try it on. Linux only."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK_ROWS = 20_000
KEYS = 5_000


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a command took."""

    code: int
    output: str
    """What it wrote to both streams."""
    bytes: int
    """The largest sum of proportional set sizes over the processes of its tree."""
    seconds: float


def peak_pss(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, interval_s: float = 0.05) -> Peak:
    """Run `command` to its end and look at its tree's memory all along.

    The proportional set size counts a page shared by n processes as a share of 1/n, and pages of mapped files with the rest.

    Args:
        interval_s: Seconds between two looks; what comes and goes in between is not seen.
    """
    start = time.perf_counter()
    peak = 0
    with subprocess.Popen(
        list(command), cwd=cwd, env=None if env is None else dict(env), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        said: list[str] = []
        stream = process.stdout
        reader = threading.Thread(target=lambda: said.append(stream.read() if stream else ""))
        reader.start()
        while process.poll() is None:
            peak = max(peak, tree_pss(process.pid))
            time.sleep(interval_s)
        reader.join()
    return Peak(code=process.returncode, output=said[0], bytes=peak, seconds=time.perf_counter() - start)


def tree_pss(pid: int) -> int:
    """Bytes that a process and its descendants hold now; what has ended meanwhile counts as nothing."""
    return sum(_pss(one) for one in _tree(pid))


def write_table(folder: Path, *, num_bytes: int, notes: int = 4, note_bytes: int = 110, seed: int = 0) -> int:
    """Fill `folder` with `rows.parquet`, of `num_bytes` in Arrow, and `shops.parquet`, which joins it by `shop`; returns the rows.

    Keys, times, numbers with nulls, categories of few and of many values, a text that differs in every row: some 230 bytes a row,
    and another `note_bytes` for each of `notes` long texts. The target `bought` hangs on them weakly. No more than some 20,000 rows are in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shops = {"shop": np.arange(KEYS), "town": [f"town {i % 311}" for i in range(KEYS)], "size": rng.normal(size=KEYS)}
    pq.write_table(pa.table(shops), folder / "shops.parquet")
    rows = size = 0
    writer = None
    while size < num_bytes:
        batch = _rows(rows, notes, note_bytes, rng)
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", batch.schema, compression="zstd", compression_level=1)
        writer.write_table(batch, row_group_size=CHUNK_ROWS)
        rows, size = rows + len(batch), size + batch.nbytes
    if writer is not None:
        writer.close()
    return rows


def _rows(first: int, notes: int, note_bytes: int, rng: np.random.Generator) -> pa.Table:
    ids = np.arange(first, first + CHUNK_ROWS)
    shop = rng.integers(KEYS, size=CHUNK_ROWS)
    price = np.exp(rng.normal(size=CHUNK_ROWS))
    columns = {
        "bought": rng.random(CHUNK_ROWS) < 0.2 + 0.1 * (price > 1) + 0.05 * (shop % 7 == 0),
        "id": ids,
        "shop": shop,
        "at": pa.array(1_700_000_000_000_000 + rng.integers(10**13, size=CHUNK_ROWS), pa.timestamp("us", tz="UTC")),
        "price": pa.array(price, mask=rng.random(CHUNK_ROWS) < 0.05),
        **{f"number{i}": rng.normal(size=CHUNK_ROWS) for i in range(8)},
        **{f"count{i}": rng.zipf(1.5, size=CHUNK_ROWS).clip(0, 10**9) for i in range(4)},
        **{f"kind{i}": _texts(rng.zipf(1.3, size=CHUNK_ROWS) % size, f"kind {i}") for i, size in enumerate((5, 40, 900, 30_000))},
        "session": _texts(rng.permutation(ids), "session"),  # no two alike
        **{
            f"note{i}": _texts(rng.integers(400, size=CHUNK_ROWS), (f"a longer note, number {i}, " * note_bytes)[:note_bytes])
            for i in range(notes)
        },
    }
    return pa.table(columns)


def _texts(numbers: np.ndarray, prefix: str) -> pa.Array:
    values, places = np.unique(numbers, return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(places.astype(np.int32)), pa.array([f"{prefix} {value}" for value in values])
    ).dictionary_decode()


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                yield from _tree(int(child))
    except OSError:
        return


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
