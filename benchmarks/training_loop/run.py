"""Claim: the training loop takes at least 97 % of the steps/s of a loop written by hand in PyTorch, and is ahead of Trainer and Lightning.

Three trainings: `mlp`, a perceptron on rows in memory; `text`, the project examples/reviews; `image`, the project examples/fashion. All
loops train the same network with the same optimizer, schedule, clipping and precision, on the same batches (text) or batches as large (mlp, image),
without validation. Each in a process of its own, in turn, the order turned round every other time; ratios are taken within a repeat. Rates are of steps
from the end of the first epoch to the end of the last; what a run took beyond its steps at that rate is its start. The processor's
time stands beside wall time, since it holds still on a busy machine. Usage: run.py [mlp|text|image ...] [--repeats N]

Hugging Face's Trainer and Lightning are installed into .cache/peers beside this file, without touching the environment.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import workloads
from ways import WAYS

from tidemill.core.contract import hardware

HERE = Path(__file__).parent
PEERS = HERE / ".cache" / "peers"
INSTALLED = ("accelerate", "pytorch-lightning", "lightning-utilities", "torchmetrics", "psutil", "aiohttp", "fsspec")
# How often each is repeated where nothing else is said: some five minutes for each.
REPEATS = {"mlp": 15, "text": 5, "image": 5}
# What a line that is meant for this program begins with.
RATES = "rates "


def main(names: list[str], repeats: int | None) -> None:
    install()
    for name in names:
        for measured in measure(name, repeats or REPEATS[name]):  # written each time, so that a run that is cut off leaves what it has
            file = HERE / "results" / f"{measured['at'][:10]}-{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({key: measured[key] for key in ("steps_per_s", "start_s", "ratios")}, indent=1), flush=True)


def measure(name: str, repeats: int) -> Iterator[dict[str, Any]]:
    """What is known after each repeat. Each way has a process of its own: what one does to the allocator is not another's."""
    work = getattr(workloads, name)()
    taken: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        processes = {way: stack.enter_context(started(name, way)) for way in WAYS}
        for repeat in range(repeats):
            found = {way: asked(processes[way]) for way in (WAYS if repeat % 2 == 0 else reversed(WAYS))}
            taken.append(found)
            rates = ", ".join(f"{way} {found[way]['wall']:.4g} steps/s ({found[way]['cpu']:.4g} a processor s)" for way in WAYS)
            print(f"{name}, repeat {repeat + 1}: {rates}", flush=True)
            yield told(work, taken)


def started(name: str, way: str) -> subprocess.Popen[str]:
    """A process that waits for its turns, warmed up."""
    command = [sys.executable, str(Path(__file__)), name, "--way", way]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    asked(process)
    return process


def asked(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process measures in its turn."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(RATES):
            found: dict[str, float] = json.loads(line.removeprefix(RATES))
            return found
    raise SystemExit(f"{' '.join(map(str, process.args))} ended, rc {process.wait()}")  # type: ignore[arg-type]


def turns(name: str, way: str) -> None:
    """One way in this process: its rates as a line of JSON for each line that comes in, those of the warming up first."""
    install()
    work = getattr(workloads, name)()
    torch.set_num_threads(work.threads)
    for turn, _ in enumerate(sys.stdin):
        rates = {} if turn == 0 else WAYS[way](work).rates()
        if turn == 0:
            WAYS[way](work.brief())
        print(RATES + json.dumps(rates), flush=True)


def told(work: workloads.Workload, taken: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "ratios": {
            f"{clock}: tidemill to {way}": summary([found["tidemill"][clock] / found[way][clock] for found in taken])
            for clock in ("wall", "cpu")
            for way in WAYS
            if way != "tidemill"
        },
        "steps_per_s": {way: summary([found[way]["wall"] for found in taken]) for way in WAYS},
        "start_s": {way: summary([found[way]["start_s"] for found in taken]) for way in WAYS},
        "steps": work.steps, "threads": work.threads, "precision": work.job.config.precision, "taken": taken, "load": os.getloadavg(),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {name: peer(name) for name in INSTALLED[:2]},
    }  # fmt: skip


def install() -> None:
    """Put the peers where they touch nothing else."""
    if not (PEERS / "pytorch_lightning").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(PEERS), *INSTALLED]
        subprocess.run(command, check=True)
    sys.path.append(str(PEERS))
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning", "transformers", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def peer(name: str) -> str:
    found = next(PEERS.glob(f"{name.replace('-', '_')}-*.dist-info"), None)
    return found.name.removesuffix(".dist-info").split("-")[1] if found else ""


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REPEATS), metavar="mlp|text|image")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--way", choices=list(WAYS), help="one of them alone, in this process")
    given = parser.parse_args()
    if given.way:
        turns(given.names[0], given.way)
    else:
        main(given.names, given.repeats)
