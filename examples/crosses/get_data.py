"""Makes click logs into Parquet files: the same ones for the same numbers. Usage: get_data.py [ROWS] [CROSSES]"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
from made_crosses import CROSSES, clicked, table

FOLDER = Path(__file__).parent / "data"
ROWS = 400_000


def get_data(rows: int = ROWS, crosses: float = CROSSES, folder: Path = FOLDER) -> Path:
    """The file with so many rows, made once."""
    file = folder / (f"clicks-{rows}.parquet" if crosses == CROSSES else f"clicks-{rows}-crosses-{crosses:g}.parquet")
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = table(rows)
        made = made.append_column("click", clicked(made, crosses=crosses))
        pq.write_table(made, folder / ".partial", row_group_size=131_072, compression="zstd")
        (folder / ".partial").rename(file)
    return file


if __name__ == "__main__":
    print(get_data(*(int(given) for given in sys.argv[1:2]), *(float(given) for given in sys.argv[2:3])))
