"""A fitted model as files, without pickle: what its library writes, its kind, its calibration and interval."""

from __future__ import annotations

import json
from pathlib import Path

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError
from tidemill.models import calibration, interval
from tidemill.models.base import Fitted, Scored
from tidemill.models.kinds import kind_of

KIND = "kind.json"


def save(fitted: Fitted, folder: Path, *, kind: str) -> None:
    """Write a fitted model and what `load` needs to find its kind into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    fitted.save(folder)
    write_json(folder / KIND, {"kind": kind})


def load(folder: Path) -> Fitted:
    """The fitted model in `folder`, calibrated and with its interval where it was.

    Raises:
        DataError: If the folder does not hold one.
    """
    try:
        kind = json.loads((folder / KIND).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} must hold a native model: {error}", hint="run the train stage again") from error
    model = kind_of(kind)
    fitted: Fitted = model.load(folder)
    if (folder / interval.INTERVAL).exists():
        return interval.load(fitted, model, folder)
    if (folder / calibration.CALIBRATION).exists() and isinstance(fitted, Scored):
        return calibration.load(fitted, json.loads((folder / calibration.CALIBRATION).read_text(encoding="utf-8")))
    return fitted
