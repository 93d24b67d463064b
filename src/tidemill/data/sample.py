"""Which rows a sample keeps, decided by their content alone: those with the lowest hashes, in all or within each stratum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.core.engine import DataEngine, Rows, Source, Target, row_hash
from tidemill.core.errors import DataError
from tidemill.core.schema import Schema
from tidemill.data.config import DataConfig
from tidemill.data.split import StrataSizes, cut
from tidemill.data.table import ORDER, STRATUM, mixed, narrowed, signed

MAX_STRATA = 65_536
FIELDS = pa.schema([pa.field(ORDER, pa.int64()), pa.field(STRATUM, pa.int64())])


@dataclass(frozen=True)
class RandomSample:
    """Every row with the same chance: those whose hash is among the lowest `share` of all numbers."""

    share: float
    seed: int

    def chosen(self, batch: pa.RecordBatch, hashes: np.ndarray) -> np.ndarray:
        return np.asarray(mixed(hashes, self.seed) < np.uint64(int(self.share * 2.0**64)))


@dataclass(frozen=True)
class StratifiedSample:
    """The rows of stratum s whose hash is below `bound_S[s]`."""

    column: str
    seed: int
    strata_S: np.ndarray
    bound_S: np.ndarray

    def chosen(self, batch: pa.RecordBatch, hashes: np.ndarray) -> np.ndarray:
        position = np.searchsorted(self.strata_S, row_hash(batch, [self.column]))
        return np.asarray(mixed(hashes, self.seed) < self.bound_S[position])


def sample_of(
    engine: DataEngine, table: Rows, schema: Schema, config: DataConfig, scratch: Path, *, seed: int, share: float
) -> RandomSample | StratifiedSample | None:
    """The sample that the configuration asks for; None where that is all rows.

    A stratified one has its share of each stratum's rows, rounded, and at least one; equal rows, or rows of equal keys, stay
    together. It takes a pass over the table first.

    Args:
        share: Of the rows that the project takes, in (0, 1].
        scratch: Folder for the rows' hashes.

    Raises:
        DataError: If there are more than 65,536 strata.
    """
    sampling = config.sampling()
    # A progressive sample is taken in training: all rows are prepared.
    wanted = share * (1.0 if sampling.by == "progressive" else sampling.share)
    if wanted >= 1.0:
        return None
    if sampling.by != "stratified":
        return RandomSample(wanted, seed)
    column = sampling.column or config.target

    def hashes(batch: pa.RecordBatch) -> pa.RecordBatch:
        narrow = narrowed(batch, schema)
        order = mixed(row_hash(narrow, config.keys or narrow.schema.names), seed)
        return pa.record_batch([pa.array(signed(order)), pa.array(signed(row_hash(narrow, [column])))], schema=FIELDS)

    engine.write(engine.map_batches(table, hashes, FIELDS), Target(path=scratch))
    rows = engine.scan(Source(path=str(scratch), format="parquet"), None)
    sizes = engine.reduce(rows, StrataSizes())
    if len(sizes) > MAX_STRATA:
        raise DataError(f"data.sample: {column!r} must have at most {MAX_STRATA:,} values to be strata, has {len(sizes):,}", field=column)
    strata_S = np.array(sorted(sizes), dtype=np.uint64)
    total_S = np.array([sizes[stratum] for stratum in strata_S.tolist()], dtype=np.int64)
    start_S = np.zeros(len(strata_S), dtype=np.uint64)
    bound_S, _ = cut(engine, rows, strata_S, start_S, np.maximum(1, np.rint(total_S * wanted)))
    return StratifiedSample(column, seed, strata_S, bound_S)
