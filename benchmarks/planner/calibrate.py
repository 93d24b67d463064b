"""Fits the planner's constants on the published runs marked so, and tests them on the others.

    python benchmarks/planner/calibrate.py           # the errors of the constants as they stand
    python benchmarks/planner/calibrate.py --fit     # fits them anew first
    python benchmarks/planner/calibrate.py --splits 50   # fits on rows drawn at random, as many, and tests on those left

Four constants are fitted on ten rows by least squares of the logarithm of step time; all others are published or set beforehand
(`tidemill.train.planner.constants`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidemill.train.planner.constants import CALIBRATED, Constants
from tidemill.train.planner.devices import DEVICES
from tidemill.train.planner.layout import Layout
from tidemill.train.planner.memory import PRECISIONS
from tidemill.train.planner.network import Transformer
from tidemill.train.planner.timing import Running, StepTime, step_time

HERE = Path(__file__).parent
FITTED = ("a100", "h100", "link_share", "unfused")


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((HERE / "published.json").read_text(encoding="utf-8"))["rows"]
    return found


def published_s(row: dict[str, Any]) -> float:
    """Seconds of a step, from the figure that the source prints."""
    network, layout = Transformer(**row["model"]), Layout(**row["layout"])
    if row["figure"] == "tokens":
        return layout.batch * network.sequence / layout.ranks / row["value"]
    flops = network.model_flops(attention=row.get("attention", 1.0))
    if row["counts"] == "recompute":  # layers four times forward, the head three times
        head = 6 * network.sequence * network.hidden * network.vocabulary
        flops = (flops - head) * 4 / 3 + head
    return layout.batch * flops / layout.ranks / (row["value"] * 1e12)


def planned(row: dict[str, Any], constants: Constants = CALIBRATED) -> StepTime:
    # Megatron-LM reduces fp16 gradients as they are, all others in float32 or, where sharded by Llama 3, as printed there in float32.
    precision = PRECISIONS[row["precision"]]
    if row["precision"] == "fp16":
        precision = replace(precision, parameter=2, gradient=2, optimizer=16, reduce=2)
    return step_time(
        Transformer(**row["model"]),
        Layout(**row["layout"]),
        DEVICES[row["device"]],
        precision=precision,
        running=Running(**row["running"]),
        constants=constants,
    )


def error(row: dict[str, Any], constants: Constants = CALIBRATED) -> float:
    """Planned over published step time, less one."""
    return planned(row, constants).total_s / published_s(row) - 1


def errors(role: str, constants: Constants = CALIBRATED) -> dict[str, float]:
    return {row["id"]: error(row, constants) for row in rows() if row["role"] == role}


def summary(found: Sequence[float]) -> tuple[float, float]:
    """Median and largest error, without signs."""
    sizes = [abs(one) for one in found]
    return statistics.median(sizes), max(sizes)


def constants_of(values: Sequence[float]) -> Constants:
    given = dict(zip(FITTED, values, strict=True))
    shares = {**CALIBRATED.product_share, "a100": given["a100"], "h100": given["h100"], "b200": given["h100"]}
    return replace(CALIBRATED, product_share=shares, link_share=given["link_share"], unfused=given["unfused"])


def fit(chosen: Sequence[dict[str, Any]]) -> Constants:
    from scipy.optimize import least_squares

    targets = [math.log(published_s(row)) for row in chosen]

    def residuals(values: Sequence[float]) -> list[float]:
        made = constants_of(values)
        return [math.log(planned(row, made).total_s) - target for row, target in zip(chosen, targets, strict=True)]

    found = least_squares(residuals, [0.75, 0.75, 0.7, 2.5], bounds=([0.4, 0.4, 0.3, 1.0], [1.0, 1.0, 1.0, 8.0]))
    return constants_of([round(float(value), 2) for value in found.x])


def splits(num: int, *, num_fitted: int = 10) -> None:
    """What comes out if other rows had been chosen: a lucky choice would show here."""
    table = [row for row in rows() if row["role"] != "beyond"]
    rng = random.Random(0)
    medians, worsts = [], []
    for _ in range(num):
        chosen = rng.sample(table, num_fitted)
        made = fit(chosen)
        median, worst = summary([error(row, made) for row in table if row not in chosen])
        medians.append(median)
        worsts.append(worst)
    for name, found in (("median", medians), ("worst", worsts)):
        found.sort()
        print(f"{name} error of the rows left, over {num} choices: {found[0]:.1%} to {found[-1]:.1%}, half below {found[num // 2]:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants on the rows marked calibrate")
    parser.add_argument("--splits", type=int, default=0, metavar="N", help="fit and test on N random halves of the table")
    options = parser.parse_args()
    if options.splits:
        splits(options.splits)
        return
    constants = fit([row for row in rows() if row["role"] == "calibrate"]) if options.fit else CALIBRATED
    print(constants)
    for row in rows():
        one, target = planned(row, constants), published_s(row)
        parts = {name: getattr(one, f"{name}_s") / one.total_s for name in ("compute", "tensor", "pipeline", "bubble", "data", "optimizer")}
        said = "  ".join(f"{name} {share:4.0%}" for name, share in parts.items())
        print(f"{row['role']:10} {row['id']:24} {target:8.3f} s  planned {one.total_s:8.3f} s  {one.total_s / target - 1:+6.1%}   {said}")
    for role in ("calibrate", "test", "beyond"):
        median, worst = summary(list(errors(role, constants).values()))
        print(f"{role}: {len(errors(role, constants))} rows, median error {median:.1%}, worst {worst:.1%}")


if __name__ == "__main__":
    main()
