"""Peak memory of real ranks here against the plan: python benchmarks/planner/memory.py [--only TEXT]"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill.core.launcher import RankJob, Resources
from tidemill.core.load import load
from tidemill.train.planner.layout import Layout
from tidemill.train.planner.memory import PRECISIONS, Memory, rank_memory
from tidemill.train.planner.network import Transformer

HERE = Path(__file__).parent
MB = 1e6

# One whose activations weigh most, and one whose weights do.
ACTIVE = {"shape": {"depth": 8, "width": 256, "heads": 8, "hidden": 768}, "vocabulary": 2048, "sequence": 128, "rows": 16}
HEAVY = {"shape": {"depth": 8, "width": 384, "heads": 8, "hidden": 1536}, "vocabulary": 8192, "sequence": 64, "rows": 4}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "one rank, recomputed": {"recompute": True},
    "DDP 2": {"data": 2},
    "DDP 4": {"data": 4},
    "FSDP 2": {"shard": 2},
    "FSDP 4": {"shard": 4},
    "FSDP 4, stage 2": {"shard": 4, "shard_stage": 2},
    "FSDP 4, stage 1": {"shard": 4, "shard_stage": 1},
    "FSDP 4, recomputed": {"shard": 4, "recompute": True},
    "TP 2": {"tensor": 2},
    "TP 4": {"tensor": 4},
    "PP 2": {"pipeline": 2},
    "PP 4": {"pipeline": 4},
    "PP 4, GPipe": {"pipeline": 4, "schedule": "gpipe"},
    "FSDP 2 x TP 2": {"shard": 2, "tensor": 2},
    "DP 2 x TP 2": {"data": 2, "tensor": 2},
    "DP 2 x PP 2": {"data": 2, "pipeline": 2},
    "TP 2 x PP 2": {"tensor": 2, "pipeline": 2},
}


def arguments(case: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """What a rank is told: the case's rows in one micro-batch, or in twice as many as there are stages."""
    micro_batches = 2 * layout.get("pipeline", 1) if layout.get("pipeline", 1) > 1 else 1
    micro_batch = max(1, case["rows"] // micro_batches)
    told = {name: case[name] for name in ("shape", "vocabulary", "sequence")}
    return {**told, "layout": dict(layout), "micro_batch": micro_batch, "micro_batches": micro_batches}


def num_ranks(layout: Mapping[str, Any]) -> int:
    return math.prod(layout.get(axis, 1) for axis in ("data", "shard", "tensor", "pipeline"))


def planned(told: Mapping[str, Any]) -> Memory:
    """What the planner says of it."""
    shape, axes = told["shape"], dict(told["layout"])
    network = Transformer(
        hidden=shape["width"], layers=shape["depth"], heads=shape["heads"], ffn=shape["hidden"], vocabulary=told["vocabulary"],
        sequence=told["sequence"], gated=True, biases=False, learned_positions=False, tied=False, eager=True,
    )  # fmt: skip
    layout = Layout(stage=axes.pop("shard_stage", 3), **axes, micro_batch=told["micro_batch"], micro_batches=told["micro_batches"])
    return rank_memory(network, layout, PRECISIONS["fp32"])


def measured(told: Mapping[str, Any]) -> list[dict[str, float]]:
    """What each rank held, from real processes."""
    with tempfile.TemporaryDirectory(prefix="peak-") as folder:
        job = RankJob(target="peak:measure", arguments=told, folder=Path(folder), paths=[str(HERE)])
        return list(load("launcher", "local")().run(job, num_ranks(told["layout"]), Resources(threads=1)).results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="layouts whose name holds this")
    parser.add_argument("--output", help="write the result as JSON")
    options = parser.parse_args()
    found = []
    for name, layout in LAYOUTS.items():
        for kind, case in (("active", ACTIVE), ("heavy", HEAVY)):
            if options.only not in name:
                continue
            told = arguments(case, layout)
            ranks, plan = measured(told), planned(told)
            resident, counted = (max(rank[way] for rank in ranks) for way in ("resident", "counted"))
            found.append({"layout": name, "case": kind, "planned": plan.total, "resident": resident, "counted": counted})
            print(
                f"{name:22} {kind:7} planned {plan.total / MB:7.1f} MB  resident {resident / MB:7.1f} MB {plan.total / resident - 1:+6.1%}"
                f"  counted {counted / MB:7.1f} MB {plan.total / counted - 1:+6.1%}",
                flush=True,
            )
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
