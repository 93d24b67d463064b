"""Makes click logs into Parquet files of a million rows: the same ones for the same number of rows. Usage: get_data.py [ROWS]"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
from made_clicks import clicked, table

FOLDER = Path(__file__).parent / "data"
ROWS = 10_000_000
FILE_ROWS = 1_000_000


def get_data(rows: int = ROWS, folder: Path = FOLDER) -> Path:
    """The folder of files with so many rows, made once; a part that is there is not made again."""
    made = folder / f"clicks-{rows}"
    made.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        file = made / f"part-{number:03d}.parquet"
        if not file.exists():
            part = table(min(FILE_ROWS, rows - start), seed=number)
            part = part.append_column("click", clicked(part, seed=number))
            pq.write_table(part, made / ".partial", row_group_size=131_072, compression="zstd", compression_level=1)
            (made / ".partial").rename(file)
            print(f"made {start + len(part):,} of {rows:,} rows", flush=True)
    return made


if __name__ == "__main__":
    print(get_data(*(int(argument) for argument in sys.argv[1:])))
