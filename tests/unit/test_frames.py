"""Data frames that are no plain table are refused in words."""

from __future__ import annotations

import pandas as pd
import pytest

from tidemill.core.errors import DataError
from tidemill.notebook import to_arrow


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "each column once: .*'a' 2 times"),
        (pd.DataFrame({"mixed": [1, "a", None]}), "must hold one type: .*column mixed"),
        (pd.DataFrame({"mixed": [b"x", 1.5]}), "must hold one type: .*column mixed"),
    ],
)
def test_frames_that_are_no_plain_table(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_arrow(frame)
