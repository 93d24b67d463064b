"""Numbers, sizes, times and values as people read them. Absent values are an en dash."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

ABSENT = "\u2013"
SPACE = "\u00a0"
MINUS = "\u2212"


def number(value: Any, *, digits: int = 4) -> str:
    """A number in `digits` significant digits, thousands grouped.

    Example:
        >>> number(336776), number(0.123456), number(-12.5)
        ('336,776', '0.1235', '\u221212.5')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ABSENT if value is None else str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("\u221e" if value > 0 else f"{MINUS}\u221e")
    size = abs(value)
    if float(value).is_integer() and size < 1e15:
        text = f"{int(size):,}"
    elif size >= 10 ** (digits - 1):
        text = f"{size:,.0f}" if size < 1e15 else _scientific(size, digits=digits)
    elif size >= 1e-4:
        decimals = digits - 1 - math.floor(math.log10(size))
        text = f"{size:.{min(decimals, 8)}f}".rstrip("0").rstrip(".")
    else:
        text = _scientific(size, digits=min(digits, 3))
    return f"{MINUS}{text}" if value < 0 and size > 0 else text


def score(value: Any) -> str:
    """A measured quality: four decimals below one, four significant digits above, so that neighbours in a column line up."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 5e-5 <= abs(value) < 1e4:
        decimals = 4 if abs(value) < 1 else max(3 - math.floor(math.log10(abs(value))), 0)
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    return number(value)


def interval(low: Any, high: Any) -> str:
    """Two ends of an interval.

    Example:
        >>> interval(0.701, 0.709)
        '0.7010 to 0.7090'
    """
    return ABSENT if low is None or high is None else f"{score(low)} to {score(high)}"


def percent(share: Any, *, digits: int = 1) -> str:
    """A share as a percentage; something that is not nothing never shows as 0.

    Example:
        >>> percent(0.256).replace(SPACE, " ")
        '25.6 %'
    """
    if share is None or not math.isfinite(share):
        return ABSENT
    if share == 0:
        return f"0{SPACE}%"
    smallest = 10.0**-digits
    if 0 < share * 100 < smallest / 2:
        return f"<{SPACE}{smallest:g}{SPACE}%"
    text = f"{share * 100:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS) + f"{SPACE}%"


def size(num_bytes: Any) -> str:
    """Bytes in the largest decimal unit that leaves at least one.

    Example:
        >>> size(4_210_000).replace(SPACE, " ")
        '4.21 MB'
    """
    if num_bytes is None:
        return ABSENT
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{number(num_bytes / scale, digits=3)}{SPACE}{unit}"
    return f"{num_bytes:.0f}{SPACE}B"


def seconds(value: Any) -> str:
    """A duration.

    Example:
        >>> seconds(150).replace(SPACE, " ")
        '2 min 30 s'
    """
    if value is None:
        return ABSENT
    if value < 1:
        return f"{number(value * 1000, digits=2)}{SPACE}ms"
    if value < 60:
        return f"{number(value, digits=3)}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{SPACE}h{SPACE}{minutes}{SPACE}min"
    return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s" if rest else f"{minutes}{SPACE}min"


def milliseconds(value: Any) -> str:
    """A latency in milliseconds, or in microseconds below a tenth of one."""
    if value is None:
        return ABSENT
    return f"{number(value * 1000, digits=3)}{SPACE}\u00b5s" if value < 0.1 else f"{number(value, digits=3)}{SPACE}ms"


def moment(text: Any) -> str:
    """An ISO 8601 time to the minute, as "21 November 2026, 11:48 UTC"; anything else as it stands."""
    if not text:
        return ABSENT
    try:
        at = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    at = at.astimezone(dt.UTC) if at.tzinfo else at
    return f"{at.day} {at:%B %Y, %H:%M}" + (" UTC" if at.tzinfo else "")


def date(text: Any) -> str:
    """The day of an ISO 8601 time."""
    return moment(text).partition(",")[0]


def plain(value: Any) -> str:
    """Any small value on one line: numbers shortened, lists and tables opened."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)


def shorten(text: str, length: int) -> str:
    """`text`, cut with an ellipsis where it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def words(name: str) -> str:
    """A metric's or parameter's name for people.

    Example:
        >>> words("roc_auc"), words("model.max_depth")
        ('ROC AUC', 'Max depth')
    """
    return METRICS.get(name) or name.rpartition(".")[2].replace("_", " ").capitalize()


def _scientific(size: float, *, digits: int) -> str:
    mantissa, _, power = f"{size:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"


METRICS = {
    "accuracy": "Accuracy", "average_precision": "Average precision", "balanced_accuracy": "Balanced accuracy", "brier": "Brier score",
    "ece": "Calibration error", "expected_calibration_error": "Calibration error", "f1": "F1", "f1_macro": "F1, macro",
    "ks": "Kolmogorov-Smirnov", "log_loss": "Log loss", "logloss": "Log loss", "mae": "MAE", "mape": "MAPE", "median_ae": "Median error", "mlogloss": "Log loss", "mse": "MSE",
    "pr_auc": "PR AUC", "precision": "Precision", "r2": "R\u00b2", "recall": "Recall", "rmse": "RMSE", "roc_auc": "ROC AUC",
    "auc": "ROC AUC", "smape": "sMAPE", "error": "Error rate", "merror": "Error rate",
}  # fmt: skip
