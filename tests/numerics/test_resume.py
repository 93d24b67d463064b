"""A run of a network that is stopped in the middle of an epoch, twice, ends bitwise as one that nobody stopped."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from tidemill import pipeline  # noqa: E402
from tidemill.core import project  # noqa: E402
from tidemill.core.artifact import Artifact  # noqa: E402
from tidemill.core.errors import ConfigError  # noqa: E402
from tidemill.core.events import Events  # noqa: E402
from tidemill.core.project import build  # noqa: E402
from tidemill.core.ranks.pulse import pulse  # noqa: E402
from tidemill.models.base import MemoryMatrix  # noqa: E402
from tidemill.models.networks.mlp import Mlp, MlpParams  # noqa: E402
from tidemill.train.torch.config import NetworkConfig, resolve  # noqa: E402
from tidemill.train.torch.rank import Job, train  # noqa: E402
from tidemill.train.torch.sources import described  # noqa: E402

if TYPE_CHECKING:
    from tests.numerics.pool import Pool

# All that has a state: dropout, an average, the best weights so far, early stopping, a scaled loss.
CONFIG: dict[str, Any] = {
    "epochs": 3, "batch_size": 32, "accumulate": 2, "evaluate_every": 7, "early_stopping": 50, "ema": 0.95, "clip": 0.5,
    "optimizer": {"learning_rate": 0.01}, "loader": {"workers": 1}, "checkpoint": {"every_steps": 4, "every_s": 0.0},
}  # fmt: skip


class Stopped(BaseException):
    """What a kill is to the loop."""


def matrix(count: int, *, seed: int) -> MemoryMatrix:
    random = np.random.default_rng(seed)
    x_NF = random.normal(size=(count, 6)).astype(np.float32)
    return MemoryMatrix(x_NF, (x_NF[:, 0] * x_NF[:, 1] > 0).astype(np.float64), random.uniform(0.5, 2.0, size=count))


def run(folder: str | None, *, stop: int = 0, config: dict[str, Any] | None = None, params: dict[str, Any] | None = None) -> str | None:
    """What a run over features ends with, as `ended` tells it."""
    rows, valid, kind = matrix(400, seed=0), matrix(100, seed=1), Mlp()
    job = Job(
        kind=kind,
        shape=kind.shape(rows, task="binary", num_classes=2),
        params=MlpParams(**{"width": 16, "depth": 2, "dropout": 0.3, **(params or {})}),
        config=resolve(build(NetworkConfig, {**CONFIG, **(config or {})}, path="train"), {}),
        train=described(rows, None, split="train", classes=True),
        valid=described(valid, None, split="valid", classes=True),
        seed=3,
        folder=folder,
    )
    return ended(job, stop)


def ended(job: Job, stop: int) -> str | None:
    """What a run ends with, as text that tells every bit; None of one that was stopped as it came to step `stop`, or of ranks after the first."""
    watched: Any = pulse()
    told: dict[int, Any] = {}

    def step(number: int) -> None:
        if number == stop:
            raise Stopped

    watched.step = step
    try:
        result = train(job, events=Events(), on_round=lambda number, measured: told.update({number: dict(measured)}) or False)
    except Stopped:
        return None
    finally:
        del watched.step
    if result.state is None:
        return None
    bits = {name: value.numpy().tobytes().hex() for name, value in sorted(result.state.items())}
    return json.dumps({"weights": bits, "steps": result.steps, "rounds": told, "progress": vars(result.progress)})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "precision": "bf16",
            "optimizer": {"name": "sgd", "learning_rate": 0.05},
            "checkpoint": {"every_steps": 4, "every_s": 0.0, "asynchronous": False},
        },
        {"precision": "fp16", "ema": 0.0, "schedule": {"kind": "linear"}},
    ],
    ids=["adamw", "sgd-bf16", "fp16"],
)
def test_a_run_that_was_stopped_twice_ends_with_the_same_bits(tmp_path: Path, config: dict[str, Any]) -> None:
    whole = run(None, config=config)
    for stop in (10, 23):  # within the first and the second epoch, some steps after a checkpoint
        assert run(str(tmp_path), stop=stop, config=config) is None
    assert run(str(tmp_path), config=config) == whole


def test_running_statistics_and_lamb_go_on_too(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    options: dict[str, Any] = {"config": {"optimizer": {"name": "lamb", "learning_rate": 0.02}}, "params": {"normalize": "batch"}}
    whole = run(None, **options)
    assert run(str(tmp_path), stop=19, **options) is None
    assert run(str(tmp_path), **options) == whole


def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    assert run(str(tmp_path), stop=10) is None
    with pytest.raises(ConfigError, match="same order"):
        run(str(tmp_path), config={"batch_size": 48})


def rank_job(folder: str | None, stops: list[int], **options: Any) -> str | None:
    """Runs on each rank, once for every stop and then to the end."""
    for stop in stops:
        run(folder, stop=stop, **options)
    return run(folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"config": {"parallel": {"data": 2}}},
        {"config": {"parallel": {"shard": 2}}},
        {"config": {"parallel": {"shard": 2}}, "params": {"normalize": "batch"}},
    ],
    ids=["data", "shard", "shard-statistics"],
)
def test_ranks_go_on_bitwise(ranks: Pool, tmp_path: Path, options: dict[str, Any]) -> None:
    ask: Callable[..., list[Any]] = ranks.run
    whole, _ = ask(f"{__file__}:rank_job", ranks=2, timeout_s=120, folder=None, stops=[], **options)
    again, _ = ask(f"{__file__}:rank_job", ranks=2, timeout_s=120, folder=str(tmp_path), stops=[10, 23], **options)
    assert again == whole


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Rows of small images of two kinds, as the stages leave them for ranks."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    dark_N, files = random.random(160) < 0.5, []
    for dark in dark_N:
        file = io.BytesIO()
        PIL.Image.fromarray(random.integers(0, 100 if dark else 250, (6, 6), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    pq.write_table(pa.table({"picture": pa.array(files, pa.binary()), "dark": dark_N}), folder / "rows.parquet")
    tree = {
        "name": "pictures", "data": {"source": "rows.parquet", "target": "dark"}, "engine": {"threads": 1},
        "model": {"kind": "image", "height": 6, "width": 6, "mode": "L"},
    }  # fmt: skip
    found = pipeline.run(project.from_tree(tree, folder=folder), home=folder / "home", to_stage="features")
    return {stage: str(found.stages[stage].path) for stage in ("data", "features")}


def picture_job(folder: str | None, stops: list[int], pictures: dict[str, str], parallel: dict[str, int]) -> str | None:
    """As `rank_job`, over images: a network whose norms keep statistics, and augmentation that draws from the loader."""
    from tidemill.models.networks.image import AugmentParams, Image, ImageParams
    from tidemill.train.rows import RowMatrix

    kind, data, features = Image(), Artifact.open(Path(pictures["data"])), Artifact.open(Path(pictures["features"]))
    train_rows, valid_rows = (RowMatrix(data, features, split) for split in ("train", "valid"))
    params = ImageParams(height=6, width=6, mode="L", channels=4, stages=1, augment=AugmentParams(crop=1, flip=0.5))
    job = Job(
        kind=kind,
        shape=kind.shape(train_rows, task="binary", num_classes=2),
        params=params,
        config=resolve(build(NetworkConfig, {**CONFIG, "batch_size": 16, "parallel": parallel}, path="train"), {}),
        train=described(train_rows, None, split="train", classes=True),
        valid=described(valid_rows, None, split="valid", classes=True),
        seed=3,
        folder=folder,
    )
    for stop in stops:
        ended(job, stop)
    return ended(job, 0)


def test_sharded_convolutions_and_their_statistics_go_on_bitwise(ranks: Pool, tmp_path: Path, pictures: dict[str, str]) -> None:
    told: dict[str, Any] = {"pictures": pictures, "parallel": {"shard": 2}}
    whole, _ = ranks.run(f"{__file__}:picture_job", ranks=2, timeout_s=120, folder=None, stops=[], **told)
    again, _ = ranks.run(f"{__file__}:picture_job", ranks=2, timeout_s=120, folder=str(tmp_path), stops=[6, 13], **told)
    assert any(name.endswith("running_var") for name in json.loads(whole)["weights"])
    assert again == whole


@pytest.mark.parametrize("parallel", [{"data": 2}, {"shard": 2}], ids=["data", "shard"])
@pytest.mark.parametrize(
    "config",
    [pytest.param({"precision": "fp16"}, id="fp16"), pytest.param({"compile": True}, id="compiled", marks=pytest.mark.long)],
)
def test_ranks_in_fp16_or_compiled_stay_near_one_in_fp32(ranks: Pool, parallel: dict[str, int], config: dict[str, Any]) -> None:
    alone = json.loads(run(None, params=_PLAIN) or "")
    options = {"config": {**config, "parallel": parallel}, "params": _PLAIN}
    found, other = ranks.run(f"{__file__}:rank_job", ranks=2, timeout_s=240, folder=None, stops=[], **options)
    assert other is None
    found = json.loads(found)
    assert found["progress"]["step"] == alone["progress"]["step"]
    for number, measured in alone["rounds"].items():
        assert found["rounds"][number]["valid_log_loss"] == pytest.approx(
            measured["valid_log_loss"], rel=0.01 if "precision" in config else 1e-4
        )


def test_other_ranks_go_on_within_rounding(ranks: Pool, tmp_path: Path) -> None:
    """Two ranks stop, one goes on; dropout off, for it is drawn by each rank."""
    arguments = {"folder": str(tmp_path), "parallel": {"shard": 2}}
    ranks.run(f"{__file__}:plain_job", ranks=2, timeout_s=120, stop=23, **arguments)
    whole, again = json.loads(run(None, params=_PLAIN) or ""), json.loads(run(str(tmp_path), params=_PLAIN) or "")
    for name, bits in whole["weights"].items():
        first, second = (np.frombuffer(bytes.fromhex(one), np.float32) for one in (bits, again["weights"][name]))
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4, err_msg=name)


_PLAIN = {"dropout": 0.0}


def plain_job(folder: str, stop: int, parallel: dict[str, int]) -> str | None:
    return run(folder, stop=stop, config={"parallel": parallel}, params=_PLAIN)
